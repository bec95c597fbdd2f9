"""Text: edits counted by the recursion of the definition, and CTC scores read by hand."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError, LeptonError, MissingExtraError, RecipeError
from lepton_cli.measure import accuracy
from lepton_cli.measure.metrics import formula
from lepton_cli.measure.results import Accuracy
from lepton_cli.measure.spec import AccuracySpec
from tests.measure import builders

pytest.importorskip("rapidfuzz", reason="needs the extra `text`")


def texts(*found: str) -> NDArray[Any]:
    return np.array(found, object)


def value(output: NDArray[Any], labels: NDArray[Any], metric: str, **spec: Any) -> float:
    one = formula(AccuracySpec(metric=metric, **spec))
    return float(one.value(one.keep(output, labels)))


def edits(one: Any, other: Any) -> int:
    """The least number of insertions, deletions and substitutions, by trying all."""

    @functools.cache
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = least(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(same, least(i - 1, j) + 1, least(i, j - 1) + 1)

    return least(len(one), len(other))


def test_edits_are_summed_before_they_are_divided() -> None:
    """`kitten` to `sitting` takes 3 of 7; a sample of one letter that is wrong counts as one letter."""
    found, written = texts("kitten", "b"), texts("sitting", "a")
    assert value(found, written, "cer") == pytest.approx(4 / 8)
    assert value(texts("the cat sat", "a b"), texts("the hat sat down", "a b"), "wer") == pytest.approx(2 / 6)
    assert value(texts("the cat", "b"), texts("the cat", "a"), "exact") == 0.5
    # More than everything can be wrong.
    assert value(texts("aaaa"), texts("b"), "cer") == 4


WRITTEN = st.text(alphabet="ab c", min_size=1, max_size=8).filter(lambda text: bool(text.strip()))


@given(st.lists(st.tuples(st.text(alphabet="ab c", max_size=8), WRITTEN), min_size=1, max_size=4))
def test_rates_are_those_of_the_definition(pairs: list[tuple[str, str]]) -> None:
    found, written = texts(*(one for one, _ in pairs)), texts(*(other for _, other in pairs))
    plain = [(one.strip(), other.strip()) for one, other in pairs]
    letters = sum(len(other) for _, other in plain)
    assert value(found, written, "cer") == pytest.approx(sum(edits(*pair) for pair in plain) / letters)
    words = [(one.split(), other.split()) for one, other in plain]
    count = sum(len(other) for _, other in words)
    assert value(found, written, "wer") == pytest.approx(sum(edits(*pair) for pair in words) / count)
    assert value(found, written, "exact") == pytest.approx(np.mean([one == other for one, other in plain]))


def alphabet(folder: Path, *lines: str, ends: str = "\n") -> str:
    path = folder / "symbols.txt"
    path.write_bytes("".join(line + ends for line in lines).encode())
    return str(path)


def ctc(classes: list[int], count: int) -> NDArray[Any]:
    """Scores `[1, T, count]` with the given class ahead at each step."""
    return np.eye(count, dtype=np.float32)[classes][None] - 3


@pytest.mark.parametrize(
    ("lines", "blank", "steps", "read"),
    [
        # The blank comes first and has no line: repeats are one, with a blank between them two.
        (("a", "b", " "), None, [1, 1, 0, 1, 2, 3, 3, 2, 0], "aab b"),
        # A line of its own.
        (("<blank>", "a", "b", " "), "<blank>", [1, 1, 0, 1, 2, 3, 3, 2, 0], "aab b"),
        (("<blank>", "a", "b", " "), None, [1, 1, 0, 1, 2, 3, 3, 2, 0], "aab b"),
        # The last class.
        (("a", "b", " "), -1, [0, 0, 3, 0, 1, 2, 2, 1, 3], "aab b"),
        (("a", "b", " "), 3, [0, 0, 3, 0, 1, 2, 2, 1, 3], "aab b"),
        (("a", "b", " ", "-"), "-", [0, 0, 3, 0, 1, 2, 2, 1, 3], "aab b"),
        # In the middle, and symbols of two letters.
        (("a", "ß", "ch"), 1, [3, 1, 3, 0, 0, 2, 2], "chchaß"),
    ],
)
def test_ctc_scores_are_read_greedily(
    tmp_path: Path, lines: tuple[str, ...], blank: Any, steps: list[int], read: str
) -> None:
    spec = {"alphabet": alphabet(tmp_path, *lines), "blank": blank}
    assert value(ctc(steps, 4), texts(read), "exact", **spec) == 1
    assert value(ctc(steps, 4), texts(read + "x"), "cer", **spec) == pytest.approx(1 / (len(read) + 1))


def test_token_ids(tmp_path: Path) -> None:
    """Repeats stay; what is below 0 is padding, and the blank where one is named."""
    file = alphabet(tmp_path, "<pad>", "a", "b", " ", ends="\r\n")
    ids = np.array([[1, 1, 3, 2, -1], [2, 0, 0, 0, 0]])
    assert value(ids, texts("aa b", "b" + "<pad>" * 4), "exact", alphabet=file) == 1
    for blank in ("<pad>", 0, -4):
        assert value(ids, texts("aa b", "b"), "exact", alphabet=file, blank=blank) == 1


STRINGS = builders.model("g (string[N] x) => (string[N] y) { y = Identity (x) }")


def measure(found: Any, written: Any, *specs: AccuracySpec, **data: Any) -> Accuracy:
    arrays = Arrays({"x": np.asarray(found)}, written, batch=2, **data)
    return accuracy.evaluate({"original": STRINGS, "compressed": STRINGS}, arrays, specs)


def test_a_model_that_answers_in_strings() -> None:
    found = measure(["cat", "dgo", "owl"], ["cat", "dog", "bowl"], *map(_spec, ("cer", "wer", "exact")))
    rates = {one.metric: one for one in found.values["original"]}
    assert [rates[name].value for name in ("cer", "wer", "exact")] == pytest.approx([3 / 10, 2 / 3, 1 / 3])
    assert [rates[name].higher_is_better for name in ("cer", "wer", "exact")] == [False, False, True]
    assert [change.method for change in found.changes] == ["bootstrap", "bootstrap", "newcombe"]
    assert found.fidelity[0].agreement == 1, "strings are decisions"


def _spec(metric: str) -> AccuracySpec:
    return AccuracySpec(metric=metric)


def test_numbers_are_text_where_the_data_say_so() -> None:
    """`0012` read as `012` is one edit of four."""
    digits = ["0012", "34"]
    found = measure(["012", "34"], digits, _spec("cer"), label_type="text")
    assert found.values["original"][0].value == pytest.approx(1 / 6)
    with pytest.raises(DataError, match="labels `labels` are numbers") as caught:
        measure(["012", "34"], digits, _spec("cer"))
    assert "`label_type: text`" in (caught.value.hint or "")
    assert caught.value.option == ("data", "evaluation", "labels")


def test_the_interval_of_a_rate_is_that_of_the_plain_bootstrap() -> None:
    words = ["cat", "dog", "bowl", "bee", "antelope", "ox"]
    first = measure(["cat", "dgo", "owl", "bee", "antilope", "ox"], words, _spec("cer")).values["original"][0]
    wrong, letters = np.array([0, 2, 1, 0, 1, 0]), np.array([len(word) for word in words])
    rows = np.random.default_rng(0).integers(0, 6, size=(1000, 6))
    low, high = np.quantile(wrong[rows].sum(axis=1) / letters[rows].sum(axis=1), [0.025, 0.975])
    assert (first.low, first.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("output", "lines", "blank", "said", "option"),
    [
        (ctc([0], 5), ("a", "b"), None, "2 symbols, and the output 5 classes", "alphabet"),
        (ctc([0], 2), ("a", "b", "c"), None, "3 symbols, and the output 2 classes", "alphabet"),
        (np.array([[0, 2]]), ("a", "b"), None, "2 symbols, and the output names token 2", "alphabet"),
        (np.array([[0, 1]]), ("a", "", "b"), None, "line 2 of the alphabet", "alphabet"),
        (np.array([[0, 1]]), None, None, "nothing says which symbols", "alphabet"),
        (ctc([0], 3), ("a", "b"), 3, "of 3 classes none is number 3", "blank"),
        (ctc([0], 3), ("a", "b"), "-", "no symbol `-`", "blank"),
        (np.zeros((1, 3), np.float32), ("a", "b", "c"), None, "scores 1 x 3 are no text", "output"),
        (np.array([["a", "b"]], object), None, None, "one text a sample", "output"),
    ],
)
def test_what_is_no_text(
    tmp_path: Path, output: NDArray[Any], lines: tuple[str, ...] | None, blank: Any, said: str, option: str
) -> None:
    spec = {} if lines is None else {"alphabet": alphabet(tmp_path, *lines), "blank": blank}
    for metric in ("cer", "exact"):
        with pytest.raises((DataError, RecipeError), match=said) as caught:
            value(output, texts("a"), metric, **spec)
        assert tuple(caught.value.option) == (option,)


def test_an_empty_text_and_an_alphabet_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text of sample 1 of a batch is empty"):
        value(texts("a", "b"), texts("a", " "), "cer")
    data = Arrays({"x": np.zeros((1, 2, 3), np.float32)}, ["ab"])
    spec = AccuracySpec(metric="cer", alphabet="none.txt")
    model = builders.identity("N, 2, 3")
    with pytest.raises(RecipeError, match="cannot read the alphabet") as caught:
        accuracy.evaluate({"original": model}, data, [_spec("top1"), spec][1:], base=tmp_path)
    assert caught.value.option == ("evaluate", "accuracy", 0, "alphabet")
    assert str(tmp_path / "none.txt") in caught.value.message
    alphabet(tmp_path, "a", "b")
    found = accuracy.evaluate(
        {"original": model}, data, [AccuracySpec(metric="cer", alphabet="symbols.txt")], base=tmp_path
    )
    assert found.values["original"][0].value == 1, "relative to the recipe; of equal scores all are blank"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(MissingExtraError, match="`metric: wer` needs the package `rapidfuzz`") as caught:
        measure(["a"], ["a"], _spec("wer"))
    assert caught.value.hint == "pip install 'lepton-cli[text]'"
    assert measure(["a"], ["a"], _spec("exact")).values["original"][0].value == 1


def test_options_that_belong_elsewhere() -> None:
    for wrong in ({"metric": "top1", "alphabet": "a.txt"}, {"metric": "cer", "peak": 2}, {"metric": "cer", "blank": 0}):
        with pytest.raises(LeptonError, match=r"is for|goes with"):
            AccuracySpec(**wrong)
