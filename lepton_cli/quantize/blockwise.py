"""Values of a weight block in 4 or 8 bits: round-to-nearest and k-quant; packing for MatMulNBits.

A block holds `block_size` weights of one output column that share a scale and (unless symmetric) a zero point:
`w ~ (q - zero_point) * scale`, with q in [0, 2^bits). Symmetric blocks have the zero point 2^(bits-1).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RoundingMethod = Literal["rtn", "k_quant"]
Float32Array = NDArray[np.float32]
Codes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Quantized blocks. `codes` [..., block], `scales` [...], `zero_points` [...] (`None` when symmetric)."""

    codes: Codes
    scales: Float32Array
    zero_points: Codes | None

    def dequantized(self, bits: int) -> Float32Array:
        """What the runtime will compute with."""
        zero = (
            np.float32(1 << (bits - 1)) if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        )
        return (self.codes.astype(np.float32) - zero) * self.scales[..., None]


def quantize(blocks: Float32Array, bits: int, method: RoundingMethod, symmetric: bool) -> Blocks:
    """Quantize float blocks [..., block]."""
    if symmetric:
        return _symmetric(blocks, bits, search=method != "rtn")
    return _affine(blocks, bits) if method == "rtn" else _k_quant(blocks, bits)


def _symmetric(blocks: Float32Array, bits: int, search: bool) -> Blocks:
    """The value of greatest magnitude takes the code 0, the one further from the middle than any other."""
    half = 1 << (bits - 1)
    at = np.abs(blocks).argmax(axis=-1, keepdims=True)
    extreme = np.take_along_axis(blocks, at, axis=-1)[..., 0]
    best = _encode(blocks, (extreme / -half).astype(np.float32), None, bits)
    if not search:
        return best
    least = _error(blocks, best, bits)
    for cut in np.linspace(0.7, 1.1, 17):
        trial = _encode(blocks, (extreme * cut / -half).astype(np.float32), None, bits)
        best, least = _better(blocks, best, least, trial, bits)
    return best


def _affine(blocks: Float32Array, bits: int) -> Blocks:
    """Least and greatest value (0 included) at the ends of the range."""
    top = (1 << bits) - 1
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    scales = ((high - low) / top).astype(np.float32)
    return _encode(blocks, scales, _rounded(-low, scales, top), bits)


def _rounded(offset: Float32Array, scales: Float32Array, top: int) -> Codes:
    safe = np.where(scales == 0, 1, scales)
    return np.clip(np.rint(offset / safe), 0, top).astype(np.uint8)


def _encode(blocks: Float32Array, scales: Float32Array, zero_points: Codes | None, bits: int) -> Blocks:
    top = (1 << bits) - 1
    zero = np.float32(1 << (bits - 1)) if zero_points is None else zero_points[..., None].astype(np.float32)
    safe = np.where(scales == 0, 1, scales)[..., None]
    codes = np.clip(np.rint(blocks / safe + zero), 0, top).astype(np.uint8)
    return Blocks(codes, scales, zero_points)


def _error(blocks: Float32Array, made: Blocks, bits: int) -> Float32Array:
    error: Float32Array = np.square(made.dequantized(bits) - blocks).sum(axis=-1)
    return error


def _better(
    blocks: Float32Array, best: Blocks, least: Float32Array, trial: Blocks, bits: int
) -> tuple[Blocks, Float32Array]:
    error = _error(blocks, trial, bits)
    wins = error < least
    zero_points = None
    if best.zero_points is not None and trial.zero_points is not None:
        zero_points = np.where(wins, trial.zero_points, best.zero_points)
    codes = np.where(wins[..., None], trial.codes, best.codes)
    return Blocks(codes, np.where(wins, trial.scales, best.scales), zero_points), np.where(wins, error, least)


def _k_quant(blocks: Float32Array, bits: int) -> Blocks:
    """llama.cpp's k-quant idea: try stretched scales, refit scale and offset by least squares, keep the best."""
    best = _affine(blocks, bits)
    least = _error(blocks, best, bits)
    top = (1 << bits) - 1
    low = np.minimum(blocks.min(axis=-1), 0)
    extent = np.maximum(blocks.max(axis=-1), 0) - low
    for step in np.arange(-0.5, 1.01, 0.1):
        scales = (extent / (top + step)).astype(np.float32)
        trial = _encode(blocks, scales, _rounded(-low, scales, top), bits)
        codes = trial.codes.astype(np.float32)
        mean_code, mean = codes.mean(axis=-1, keepdims=True), blocks.mean(axis=-1, keepdims=True)
        spread = np.square(codes - mean_code).sum(axis=-1)
        slope = ((codes - mean_code) * (blocks - mean)).sum(axis=-1) / np.where(spread == 0, 1, spread)
        fitted = np.where((spread == 0) | (slope <= 0), scales, slope).astype(np.float32)
        offset = fitted * mean_code[..., 0] - mean[..., 0]
        trial = _encode(blocks, fitted, _rounded(offset, fitted, top), bits)
        best, least = _better(blocks, best, least, trial, bits)
    return best


def pack(codes: Codes, bits: int) -> Codes:
    """Codes [..., n] as bytes: 8 bits one each, 4 bits two each with the even index in the low half."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(codes[..., 0::2] | (codes[..., 1::2] << 4), dtype=np.uint8)
