"""The literal table of operators: what onnxruntime computes, as a function of torch tensors."""

from __future__ import annotations

from lepton_cli.train.operators import attention, fused_attention, layers, norms, pooling, recurrent
from lepton_cli.train.operators.call import Operator

#: By domain (`""`: the standard) and name.
OPERATORS: dict[tuple[str, str], Operator] = {
    # layers
    ("", "Attention"): attention.attention,
    ("", "AveragePool"): pooling.average_pool,
    ("", "BatchNormalization"): norms.batch_normalization,
    ("", "Conv"): layers.conv,
    ("", "ConvTranspose"): layers.conv_transpose,
    ("", "GRU"): recurrent.gru,
    ("", "Gemm"): layers.gemm,
    ("", "GlobalAveragePool"): pooling.global_average_pool,
    ("", "GlobalLpPool"): pooling.global_lp_pool,
    ("", "GlobalMaxPool"): pooling.global_max_pool,
    ("", "GroupNormalization"): norms.group_normalization,
    ("", "InstanceNormalization"): norms.instance_normalization,
    ("", "LRN"): norms.lrn,
    ("", "LSTM"): recurrent.lstm,
    ("", "LayerNormalization"): norms.layer_normalization,
    ("", "LpNormalization"): norms.lp_normalization,
    ("", "LpPool"): pooling.lp_pool,
    ("", "MatMul"): layers.matmul,
    ("", "MaxPool"): pooling.max_pool,
    ("", "MeanVarianceNormalization"): norms.mean_variance_normalization,
    ("", "RMSNormalization"): norms.rms_normalization,
    ("", "RNN"): recurrent.rnn,
    ("", "RotaryEmbedding"): attention.rotary_embedding,
    ("", "SimplifiedLayerNormalization"): norms.rms_normalization,
    ("com.microsoft", "Attention"): fused_attention.attention,
    ("com.microsoft", "BiasGelu"): norms.bias_gelu,
    ("com.microsoft", "EmbedLayerNormalization"): norms.embed_layer_normalization,
    ("com.microsoft", "FastGelu"): norms.fast_gelu,
    ("com.microsoft", "FusedConv"): layers.fused_conv,
    ("com.microsoft", "FusedGemm"): layers.fused_gemm,
    ("com.microsoft", "FusedMatMul"): layers.fused_matmul,
    ("com.microsoft", "GroupQueryAttention"): fused_attention.group_query_attention,
    ("com.microsoft", "MultiHeadAttention"): fused_attention.multi_head_attention,
    ("com.microsoft", "QuickGelu"): norms.quick_gelu,
    ("com.microsoft", "RotaryEmbedding"): fused_attention.rotary_embedding,
    ("com.microsoft", "SkipLayerNormalization"): norms.skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): norms.skip_rms_normalization,
}
