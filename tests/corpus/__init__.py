"""Modern architectures in small, as today's exporters write them: what works here shall work on other people's."""

from tests.corpus.language import LANGUAGE
from tests.corpus.net import Member
from tests.corpus.sequences import SEQUENCES
from tests.corpus.vision import VISION

MEMBERS: dict[str, Member] = {**VISION, **LANGUAGE, **SEQUENCES}
