"""A model of decision trees: one sentence instead of a run that changes nothing."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from lepton_cli.commands.choose import choose
from lepton_cli.errors import ModelError
from lepton_cli.progress import Silent


def forest(path: Path, trees: int) -> Path:
    """Stumps: one threshold and two leaves each."""
    nodes = range(3 * trees)
    branches = [number % 3 == 0 for number in nodes]
    leaves = [number for number in nodes if not branches[number]]
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        name="trees",
        n_targets=1,
        nodes_treeids=[number // 3 for number in nodes],
        nodes_nodeids=[number % 3 for number in nodes],
        nodes_featureids=[0 for _ in nodes],
        nodes_values=[0.5 for _ in nodes],
        nodes_modes=["BRANCH_LEQ" if branch else "LEAF" for branch in branches],
        nodes_truenodeids=[int(branch) for branch in branches],
        nodes_falsenodeids=[2 * branch for branch in branches],
        target_treeids=[number // 3 for number in leaves],
        target_nodeids=[number % 3 for number in leaves],
        target_ids=[0 for _ in leaves],
        target_weights=[1.0 for _ in leaves],
    )
    graph = helper.make_graph(
        [node],
        "forest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_trees_are_said_to_be_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing in this model can be compressed: its 1,000 numbers") as caught:
        choose(forest(tmp_path / "trees.onnx", 200), None, None, Silent())
    assert "attributes of TreeEnsembleRegressor" in caught.value.message


def test_a_model_without_large_lists_is_not(tmp_path: Path) -> None:
    recipe = choose(forest(tmp_path / "stump.onnx", 2), None, None, Silent())
    assert [step.step for step in recipe.recipe.steps] == ["simplify"]
