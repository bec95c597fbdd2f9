"""The literal table of operators: what onnxruntime computes, as a function of torch tensors."""

from __future__ import annotations

from lepton_cli.train.operators.call import Operator

#: By domain (`""`: the standard) and name.
OPERATORS: dict[tuple[str, str], Operator] = {}
