"""Training needs torch, which is an extra: without it these modules are skipped, and say why."""

import pytest

pytest.importorskip("torch", reason="needs the extra `train`")
