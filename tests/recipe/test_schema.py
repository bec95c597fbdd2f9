"""Gates: limits and scope that fit the metric, one comparison each."""

import pytest

from lepton_cli.errors import RecipeError
from lepton_cli.metrics import METRICS, OWN
from lepton_cli.recipe.schema import Gate, Recipe


def test_a_gate_holds_its_limit_in_base_units():
    gate = Gate(metric="latency.median", max="20 ms", provider="cpu", batch=1)
    assert gate.comparison == "max"
    assert gate.limit == 0.02
    assert gate.limit.text == "20 ms"
    assert gate.level == "error"
    assert Gate(**gate.model_dump(mode="json")) == gate


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "size.file"}, "give exactly one of max, min"),
        ({"metric": "size.file", "max": "1 MB", "min": "1 kB"}, "not max and min"),
        ({"metric": "size.file", "max_drop": "1 kB"}, "write `max_increase`"),
        ({"metric": "agreement", "max_increase": "1 pp"}, "write `max_drop`"),
        ({"metric": "parameters", "max": 5, "output": "logits"}, "takes neither"),
        ({"metric": "latency.p90", "max": "5 ms", "output": "logits"}, "takes `provider` and `batch`"),
        ({"metric": "agreement", "min": "98 %", "batch": 1}, "takes `output`"),
        ({"metric": "latency.p90", "max": "5 ms", "batch": 0}, "greater than or equal to 1"),
        ({"metric": "nothing", "max": "5 ms"}, "no metric of this name"),
    ],
)
def test_gates_that_make_no_sense(given, said):
    with pytest.raises(RecipeError, match=said):
        Gate(**given)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_its_difference_on_one_side(name):
    right, wrong = ("max_drop", "max_increase") if METRICS[name].better == "higher" else ("max_increase", "max_drop")
    text = {"size": "1 MB", "time": "1 ms", "share": "1 pp", "energy": "1 mJ"}.get(METRICS[name].kind, "1")
    assert Gate(metric=name, **{right: text}).comparison == right
    if name == OWN:  # `evaluate` says which way is better: tests/measure/test_own_metric.py
        return
    with pytest.raises(RecipeError):
        Gate(metric=name, **{wrong: text})


@pytest.mark.parametrize(("later", "timed_as"), [("quantize.dynamic", "dynamic"), ("quantize.weights", "float")])
def test_a_step_knows_what_follows_and_the_recipe_says_it(later, timed_as):
    steps = ({"step": "simplify"}, {"step": "prune.channels"}, {"step": later})
    recipe = Recipe(version=1, steps=steps)
    assert [step.step for step in recipe.steps] == ["simplify", "prune.channels", later]
    assert recipe.steps[1].timed_as == timed_as
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again.steps == recipe.steps


def test_what_is_in_front_decides_nothing():
    recipe = Recipe(version=1, steps=({"step": "convert.fp16"}, {"step": "prune.channels"}))
    assert recipe.steps[1].timed_as == "float"
