"""Normalizations, and the activations with a bias that onnxruntime fuses beside them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lepton_cli.train.operators.call import NotInTorch, OperatorCall
from lepton_cli.train.operators.pooling import root


def batch_normalization(
    call: OperatorCall, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, train: bool = False
) -> Tensor | tuple[Tensor, ...]:
    """BatchNormalization with the statistics given, or in training (`train`, or the attribute `training_mode`) with
    those of the batch. The running statistics that follow, as the standard defines them, are results too: always with
    `train`, otherwise where the node asks. No gradient passes to statistics.
    """
    epsilon, momentum = call.get("epsilon", 1e-5), call.get("momentum", 0.9)
    if not call.get("spatial", 1):
        raise NotInTorch("BatchNormalization of every place by itself (spatial = 0)")
    if not train and not call.get("training_mode", 0):
        if call.outputs > 1:
            raise NotInTorch("BatchNormalization with statistics as results, before opset 14")
        return functional.batch_norm(x, mean.detach(), variance.detach(), scale, bias, False, 0.0, epsilon)
    # With a momentum of one torch writes the batch's own statistics, from the pass that it makes anyway.
    found_mean, found_variance = torch.zeros_like(mean), torch.ones_like(variance)
    y = functional.batch_norm(x, found_mean, found_variance, scale, bias, True, 1.0, epsilon)
    values = x.numel() // x.shape[1]
    found_variance = found_variance * ((values - 1) / values)  # torch's divides by one less than the standard's
    mean = mean.detach() * momentum + found_mean * (1 - momentum)
    variance = variance.detach() * momentum + found_variance * (1 - momentum)
    return (y, mean, variance)[: 3 if train else call.outputs]


def layer_normalization(
    call: OperatorCall, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor | None, ...]:
    """LayerNormalization: the result, and where asked the means and the inverse deviations."""
    axis = call.get("axis", -1) % x.dim()
    y = _layer(x, axis, scale, bias, call.get("epsilon", 1e-5))
    return (y, *_statistics(x, axis, call.get("epsilon", 1e-5)))[: call.outputs] if call.outputs > 1 else y


def skip_layer_normalization(
    call: OperatorCall, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> Tensor | tuple[Tensor | None, ...]:
    """com.microsoft SkipLayerNormalization: the layer's normalization of a sum, which is the fourth result."""
    added, epsilon = _sum(x, skip, bias), call.get("epsilon", 1e-12)
    y = _layer(added, added.dim() - 1, scale, shift, epsilon)
    return (y, *_statistics(added, added.dim() - 1, epsilon), added)[: call.outputs] if call.outputs > 1 else y


def embed_layer_normalization(
    call: OperatorCall,
    tokens: Tensor,
    segments: Tensor | None,
    token_table: Tensor,
    place_table: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor | tuple[Tensor | None, ...]:
    """com.microsoft EmbedLayerNormalization: the sum of a token's embeddings (the third result), normalized. The
    second is the number of ones in each row of the mask, as BERT's attention reads it.
    """
    added = functional.embedding(tokens.long(), token_table)
    where = torch.arange(tokens.shape[1], device=tokens.device) if places is None else places.long()
    added = added + functional.embedding(where, place_table)
    if segment_table is not None and segments is not None:
        added = added + functional.embedding(segments.long(), segment_table)
    y = _layer(added, added.dim() - 1, scale, shift, call.get("epsilon", 1e-12))
    if call.outputs == 1:
        return y
    ones = torch.zeros_like(tokens) if mask is None else (mask == 1).to(tokens.dtype)
    return (y, ones.sum(1).to(torch.int32), added)[: call.outputs]


def rms_normalization(call: OperatorCall, x: Tensor, scale: Tensor) -> Tensor | tuple[Tensor | None, ...]:
    """RMSNormalization, and onnxruntime's SimplifiedLayerNormalization, which also gives the inverse root mean
    squares.
    """
    axis, epsilon = call.get("axis", -1) % x.dim(), call.get("epsilon", 1e-5)
    y = _root_mean_square(x, axis, scale, epsilon)
    return (y, _inverse(x, axis, epsilon)) if call.outputs > 1 else y


def skip_rms_normalization(
    call: OperatorCall, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor | None, ...]:
    """com.microsoft SkipSimplifiedLayerNormalization; the sum is the fourth result. onnxruntime leaves out the two
    between.
    """
    added, epsilon = _sum(x, skip, bias), call.get("epsilon", 1e-12)
    y = _root_mean_square(added, added.dim() - 1, scale, epsilon)
    return (y, None, None, added)[: call.outputs] if call.outputs > 1 else y


def instance_normalization(call: OperatorCall, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization: each channel of each sample by itself, also where it is one place."""
    return torch.group_norm(x, x.shape[1], scale, bias, call.get("epsilon", 1e-5))


def group_normalization(call: OperatorCall, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization: one scale and bias a channel, or a group in opset 18."""
    groups = call["num_groups"]
    if call.opset < 21:
        scale, bias = (one.repeat_interleave(x.shape[1] // groups) for one in (scale, bias))
    return torch.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


def lp_normalization(call: OperatorCall, x: Tensor) -> Tensor:
    """LpNormalization; what is zero along the whole axis stays zero."""
    power = call.get("p", 2)
    norm = root(x.abs().pow(power).sum(call.get("axis", -1), keepdim=True), power)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def lrn(call: OperatorCall, x: Tensor) -> Tensor:
    """LRN: by the squares of the neighbouring channels (an even number of them has one more above than below)."""
    size = call["size"]
    squares = x.pow(2).reshape(x.shape[0], 1, x.shape[1], -1)
    squares = functional.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    mean = functional.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)
    return x / (mean * call.get("alpha", 1e-4) + call.get("bias", 1.0)).pow(call.get("beta", 0.75))


def mean_variance_normalization(call: OperatorCall, x: Tensor) -> Tensor:
    """MeanVarianceNormalization, by default over everything but the channels."""
    axes = tuple(call.get("axes") or (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (root(centred.pow(2).mean(axes, keepdim=True), 2) + 1e-9)


def bias_gelu(call: OperatorCall, x: Tensor, bias: Tensor) -> Tensor:
    """com.microsoft BiasGelu: exact, after a bias."""
    return functional.gelu(x + bias)


def fast_gelu(call: OperatorCall, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """com.microsoft FastGelu: by tanh, after a bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(call: OperatorCall, x: Tensor) -> Tensor:
    """com.microsoft QuickGelu: by a sigmoid."""
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


def _sum(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    added = x + skip
    return added if bias is None else added + bias


def _layer(x: Tensor, axis: int, scale: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """torch asks that scale and bias have the shape of what is normalized; the standard also lets them broadcast."""
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    y = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return y if bias is None else y + bias


def _root_mean_square(x: Tensor, axis: int, scale: Tensor, epsilon: float) -> Tensor:
    shape = x.shape[axis:]
    if scale.shape == shape:
        return functional.rms_norm(x, shape, scale, epsilon)
    return functional.rms_norm(x, shape, None, epsilon) * scale


def _statistics(x: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Means and inverse deviations, in float32 at least as in the standard."""
    axes, wide = tuple(range(axis, x.dim())), _wide(x)
    mean = wide.mean(axes, keepdim=True)
    return mean, _inverse(wide - mean, axis, epsilon)


def _inverse(x: Tensor, axis: int, epsilon: float) -> Tensor:
    return torch.rsqrt(_wide(x).pow(2).mean(tuple(range(axis, x.dim())), keepdim=True) + epsilon)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
