"""Quantization algorithms: targets, ranges, equalisation, rounding, sensitivity. Steps call them."""
