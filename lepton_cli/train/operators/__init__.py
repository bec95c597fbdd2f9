"""ONNX operators in torch, one function each; `table` names them all."""
