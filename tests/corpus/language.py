"""Networks on text and speech, as exporters write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.corpus.net import BOOL, FLOAT, INT64, Feed, Member, Net, normal

WORDS, WIDTH = 60, 32


def bert(opset: int = 16) -> Any:
    """Three kinds of numbers, a mask made of them, a pooler."""
    net = Net(opset)
    names = ("input_ids", "attention_mask", "token_type_ids")
    ids, mask, kinds = (net.take(name, ["batch_size", "sequence_length"], INT64) for name in names)
    places = net.op("Range", net.whole(0), net.op("Squeeze", net.size(ids, 1), net.integers(0)), net.whole(1))
    x = net.op("Gather", net.weight(WORDS, WIDTH, scale=1.0), ids)
    x = net.op("Add", x, net.op("Gather", net.weight(2, WIDTH, scale=0.3), kinds))
    x = net.op("Add", x, net.op("Gather", net.weight(40, WIDTH, scale=0.3), places))
    hidden = net.op("Cast", net.op("Unsqueeze", mask, net.integers(1, 2)), to=FLOAT)
    hidden = net.op("Mul", net.op("Sub", net.scalar(1), hidden), net.scalar(float(np.finfo(np.float32).min)))
    for _ in range(2):
        x = net.block(x, WIDTH, 4, hidden)
    x = net.layer_norm(x, WIDTH)
    pooled = net.op("Tanh", net.linear(net.op("Gather", x, net.whole(0), axis=1), WIDTH, WIDTH))
    shapes = {"last_hidden_state": ["batch_size", "sequence_length", WIDTH], "pooler_output": ["batch_size", WIDTH]}
    return net.proto({name: (value, shapes[name]) for name, value in zip(shapes, (x, pooled), strict=True)})


def _bert_feed(random: np.random.Generator) -> Feed:
    ids = random.integers(0, WORDS, (1, 12))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": random.integers(0, 2, (1, 12))}


def gpt2() -> Any:
    """Layers as Gemm between reshapes, a causal mask, one table for words in and words out."""
    net = Net(18)
    ids = net.take("input_ids", ["batch", "sequence"], INT64)
    table = net.weight(WORDS, WIDTH, scale=0.5)
    places = net.op("Range", net.whole(0), net.op("Squeeze", net.size(ids, 1), net.integers(0)), net.whole(1))
    x = net.op("Add", net.op("Gather", table, ids), net.op("Gather", net.weight(40, WIDTH, scale=0.3), places))
    mask = net.causal(x)

    def layer(x: str, inner: int, outer: int) -> str:
        shape = net.op("Concat", net.slice(net.op("Shape", x), 0, 2, 0), net.integers(outer), axis=0)
        flat = net.op("Gemm", net.reshape(x, -1, inner), net.weight(inner, outer), net.weight(outer))
        return str(net.op("Reshape", flat, shape))

    for _ in range(2):
        three = net.op("Split", layer(net.layer_norm(x, WIDTH), WIDTH, 3 * WIDTH), axis=2, num_outputs=3, outputs=3)
        query, value = (net.heads(three[i], 4, 8) for i in (0, 2))
        mixed = net.attend(query, net.heads(three[1], 4, 8, turned=True), value, 4, 8, mask)
        x = net.op("Add", x, layer(mixed, WIDTH, WIDTH))
        y = layer(net.layer_norm(x, WIDTH), WIDTH, 2 * WIDTH)
        cubed = net.op("Mul", net.op("Pow", y, net.scalar(3)), net.scalar(0.044715))
        turn = net.op("Tanh", net.op("Mul", net.op("Add", y, cubed), net.scalar(0.79788456)))
        y = net.op("Mul", net.op("Mul", y, net.scalar(0.5)), net.op("Add", turn, net.scalar(1)))
        x = net.op("Add", x, layer(y, 2 * WIDTH, WIDTH))
    logits = net.op("MatMul", net.layer_norm(x, WIDTH), net.transpose(table, 1, 0))
    return net.proto({"logits": (logits, ["batch", "sequence", WORDS])})


class _Llama(Net):
    """Four query heads of eight, two key heads; written with plain operators, or with those of operator set 23."""

    def normed(self, x: str) -> str:
        if self.opset >= 23:
            return str(self.op("RMSNormalization", x, self.near_one(WIDTH), axis=-1, epsilon=1e-5))
        power = self.op("ReduceMean", self.op("Pow", x, self.scalar(2)), self.integers(-1), keepdims=1)
        root = self.op("Reciprocal", self.op("Sqrt", self.op("Add", power, self.scalar(1e-5))))
        return str(self.op("Mul", self.near_one(WIDTH), self.op("Mul", x, root)))

    def rotation(self, positions: str) -> tuple[str, str]:
        """Cosine and sine, [batch, 1, places, 8]."""
        steps = self.constant((100.0 ** -np.linspace(0, 1, 4, endpoint=False))[None, None].astype(np.float32))
        angle = self.op("Mul", self.op("Unsqueeze", self.op("Cast", positions, to=FLOAT), self.integers(-1)), steps)
        both = self.op("Unsqueeze", self.op("Concat", angle, angle, axis=-1), self.integers(1))
        return str(self.op("Cos", both)), str(self.op("Sin", both))

    def rotated(self, x: str, rotation: tuple[str, str]) -> str:
        turned = self.op("Concat", self.op("Neg", self.slice(x, 4, 8, 3)), self.slice(x, 0, 4, 3), axis=-1)
        return str(self.op("Add", self.op("Mul", x, rotation[0]), self.op("Mul", turned, rotation[1])))

    def repeated(self, x: str) -> str:
        """Two key heads for four query heads."""
        shape = self.op("Concat", self.size(x, 0), self.integers(2, 2), self.size(x, 2), self.integers(8), axis=0)
        return self.reshape(str(self.op("Expand", self.op("Unsqueeze", x, self.integers(2)), shape)), 0, 4, -1, 8)

    def feed_forward(self, x: str) -> str:
        gate, up = (self.projected(x, WIDTH, 48, bias=False) for _ in range(2))
        return self.projected(str(self.op("Mul", self.silu(gate), up)), 48, WIDTH, bias=False)


def llama(opset: int) -> Any:
    """A decoder with grouped query heads and a cache of keys and values."""
    net = _Llama(opset)
    ids = net.take("input_ids", ["batch_size", "sequence_length"], INT64)
    mask = net.take("attention_mask", ["batch_size", "past_sequence_length + sequence_length"], INT64)
    positions = net.take("position_ids", ["batch_size", "sequence_length"], INT64)
    cached = ["batch_size", 2, "past_sequence_length", 8]
    past = [[net.take(f"past_key_values.{i}.{what}", list(cached)) for what in ("key", "value")] for i in range(2)]
    x = net.op("Gather", net.weight(WORDS, WIDTH, scale=1.0), ids)
    rotation = net.rotation(positions)
    # A place is seen where its number in the sequence is not beyond the own, and the mask says so.
    places = net.op("Range", net.whole(0), net.op("Squeeze", net.size(mask, 1), net.integers(0)), net.whole(1))
    later = net.op("Greater", net.reshape(places, 1, 1, 1, -1), net.op("Unsqueeze", positions, net.integers(1, 3)))
    gone = net.op("Equal", net.op("Unsqueeze", mask, net.integers(1, 2)), net.whole(0))
    hidden = net.op("Where", net.op("Or", later, gone), net.scalar(-1e4), net.scalar(0))
    present: dict[str, tuple[str, list[int | str]]] = {}
    for i in range(2):
        y = net.normed(x)
        heads = [net.heads(net.projected(y, WIDTH, 8 * n, bias=False), n, 8) for n in (4, 2, 2)]
        query, key = (net.rotated(head, rotation) for head in heads[:2])
        key, value = (net.op("Concat", old, new, axis=2) for old, new in zip(past[i], (key, heads[2]), strict=True))
        for what, held in (("key", key), ("value", value)):
            present[f"present.{i}.{what}"] = (held, ["batch_size", 2, "total", 8])
        if opset >= 23:
            mixed = net.op("Attention", query, key, value, hidden)
            mixed = net.reshape(net.transpose(mixed, 0, 2, 1, 3), 0, -1, WIDTH)
        else:
            turned = net.transpose(net.repeated(key), 0, 1, 3, 2)
            mixed = net.attend(query, turned, net.repeated(value), 4, 8, hidden)
        x = net.op("Add", x, net.projected(mixed, WIDTH, WIDTH, bias=False))
        x = net.op("Add", x, net.feed_forward(net.normed(x)))
    logits = net.projected(net.normed(x), WIDTH, WORDS, bias=False)
    return net.proto({"logits": (logits, ["batch_size", "sequence_length", WORDS]), **present})


def _llama_feed(random: np.random.Generator) -> Feed:
    """Six words after five that are in the cache."""
    ids = random.integers(0, WORDS, (1, 6))
    feed = {"input_ids": ids, "attention_mask": np.ones((1, 11), np.int64), "position_ids": np.arange(5, 11)[None]}
    names = [f"past_key_values.{i}.{what}" for i in range(2) for what in ("key", "value")]
    return feed | {name: normal(random, 1, 2, 5, 8) for name in names}


def merged_decoder() -> Any:
    """With a cache or without: a flag chooses the branch; both hold the weights of the body in common."""
    outer = Net(17)
    ids = outer.take("input_ids", ["batch", "sequence"], INT64)
    outer.take("use_cache_branch", [1], BOOL)
    outer.take("past", ["batch", "past", WIDTH])
    embedded = outer.op("Gather", outer.weight(WORDS, WIDTH, scale=1.0), ids)
    shared = [outer.weight(WIDTH, WIDTH) for _ in range(3)]
    bodies: list[onnx.GraphProto] = []
    for name, cached in (("then_branch", True), ("else_branch", False)):
        net = Net(17, seed=3, prefix=f"{name}/")
        y = net.op("Concat", "past", embedded, axis=1) if cached else net.op("Identity", embedded)
        query, key, value = (net.op("MatMul", at, w) for at, w in zip((embedded, y, y), shared, strict=True))
        scores = net.op("Softmax", net.op("MatMul", query, net.transpose(key, 0, 2, 1)), axis=-1)
        x = net.op("Add", embedded, net.op("MatMul", scores, value))
        x = net.projected(net.op("Relu", net.projected(x, WIDTH, 2 * WIDTH)), 2 * WIDTH, WIDTH)
        outputs = [helper.make_tensor_value_info(value, FLOAT, None) for value in (x, y)]
        bodies.append(helper.make_graph(net.nodes, name, [], outputs, net.weights))
    flag = outer.op("Squeeze", "use_cache_branch")
    x, cache = outer.op("If", flag, outputs=2, then_branch=bodies[0], else_branch=bodies[1])
    logits = outer.op("MatMul", outer.layer_norm(x, WIDTH), outer.weight(WIDTH, WORDS))
    return outer.proto({"logits": (logits, ["batch", "sequence", WORDS]), "cache": (cache, ["batch", "total", WIDTH])})


def _merged_feed(random: np.random.Generator) -> Feed:
    ids, flag = random.integers(0, WORDS, (1, 4)), np.array([bool(random.integers(0, 2))])
    return {"input_ids": ids, "use_cache_branch": flag, "past": normal(random, 1, 3, WIDTH)}


def speech_encoder() -> Any:
    """Two convolutions over time, known places, two blocks."""
    net = Net(18)
    x = net.take("input_features", ["batch_size", 16, 24])

    def conv(x: str, cin: int, stride: int) -> str:
        held = [net.weight(WIDTH, cin, 3, scale=(3 * cin) ** -0.5), net.weight(WIDTH)]
        return net.gelu(net.op("Conv", x, *held, pads=[1, 1], strides=[stride]))

    x = net.op("Add", net.transpose(conv(conv(x, 16, 1), WIDTH, 2), 0, 2, 1), net.weight(12, WIDTH))
    for _ in range(2):
        x = net.block(x, WIDTH, 4)
    return net.proto({"last_hidden_state": (net.layer_norm(x, WIDTH), ["batch_size", 12, WIDTH])})


def speech_decoder() -> Any:
    """Causal over the words, and attention to what the encoder heard."""
    net = Net(18)
    ids = net.take("input_ids", ["batch_size", "decoder_sequence_length"], INT64)
    heard = net.take("encoder_hidden_states", ["batch_size", "encoder_sequence_length", WIDTH])
    x = net.op("Gather", net.weight(WORDS, WIDTH, scale=0.7), ids)
    places = net.op("Range", net.whole(0), net.op("Squeeze", net.size(ids, 1), net.integers(0)), net.whole(1))
    x = net.op("Add", x, net.op("Gather", net.weight(40, WIDTH, scale=0.3), places))
    mask = net.causal(x)
    for _ in range(2):
        x = net.block(x, WIDTH, 4, mask, memory=heard)
    logits = net.op("MatMul", net.layer_norm(x, WIDTH), net.weight(WIDTH, WORDS))
    return net.proto({"logits": (logits, ["batch_size", "decoder_sequence_length", WORDS])})


def _speech_feed(random: np.random.Generator) -> Feed:
    return {"input_ids": random.integers(0, WORDS, (1, 5)), "encoder_hidden_states": normal(random, 1, 12, WIDTH)}


LANGUAGE: dict[str, Member] = {
    "bert": Member(bert, _bert_feed, "function"),
    "gpt2": Member(gpt2, lambda random: {"input_ids": random.integers(0, WORDS, (1, 9))}),
    "llama": Member(lambda: llama(18), _llama_feed),
    "llama, operator set 23": Member(lambda: llama(23), _llama_feed, "external"),
    "merged decoder": Member(merged_decoder, _merged_feed),
    "speech encoder": Member(speech_encoder, lambda random: {"input_features": normal(random, 1, 16, 24)}),
    "speech decoder": Member(speech_decoder, _speech_feed),
}
