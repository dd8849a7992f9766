"""A decoder-only transformer for any architecture of the catalogue, in plain torch.

Norms are RMS or layer norms, positions rotary or learned (OPT's offset of 2 included), the
feed-forward layer gated with SiLU or plain with ReLU. Query, key and value matrices are one
matrix, gate and up too, as engines have them. Attention is the caller's: `forward` hands over
queries, keys and values of every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from calibrate.weights import Constants, read_checkpoint, read_constants
from sim.costs.catalogue import OPT_POSITION_OFFSET, Model

INITIAL_SPREAD = 0.02
"""Standard deviation of random matrices: activations and logits stay finite at any depth."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Catalogue name -> torch type."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [T, heads, head_dim], k and v [T, kv_heads, head_dim]) -> like q."""

Take = Callable[..., Tensor]
"""(Hugging Face name, *shape) -> the weight."""


@dataclass(frozen=True)
class Linear:
    """A matrix [out, in] and its bias."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` times the matrix plus the bias."""
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """RMS norm, or layer norm where there is a bias."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` normalised over its last axis."""
        if self.bias is None:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; `up` holds gate and up of a gated feed-forward layer."""

    attention_norm: Norm
    qkv: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    out: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear


class Transformer:
    """Weights and the forward pass of a model, without attention and cache.

    Attributes:
        spec: architecture.
        dtype: type of weights and activations.
        device: where they lie.
    """

    def __init__(self, spec: Model, constants: Constants, take: Take) -> None:
        build = _Builder(spec, constants, take)
        self.spec = spec
        self._embed = build.embedding()
        self._learned = build.learned_positions()
        self.layers = [build.layer(number) for number in range(spec.layers)]
        self._norm = build.final_norm()
        self._head = Linear(build.output_matrix(self._embed), None)
        self.dtype, self.device = self._embed.dtype, self._embed.device
        frequencies = constants.rope_frequencies(spec.head_dim).to(self.device)
        angles = torch.arange(spec.max_length, device=self.device)[:, None] * frequencies
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        self._cos, self._sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    @classmethod
    def random(cls, spec: Model, dtype: str, device: torch.device, seed: int = 0) -> Transformer:
        """Return a model with random weights; the same seed gives the same on one device."""
        generator = torch.Generator(device).manual_seed(seed)

        def take(name: str, *shape: int) -> Tensor:
            weight = torch.empty(shape, dtype=DTYPES[dtype], device=device)
            if name.endswith("bias"):
                return weight.zero_()
            if len(shape) == 1:
                return weight.fill_(1.0)
            return weight.normal_(std=INITIAL_SPREAD, generator=generator)

        return cls(spec, Constants(), take)

    @classmethod
    def load(cls, spec: Model, path: Path, dtype: str, device: torch.device) -> Transformer:
        """Return a model with the weights of a safetensors file, or of a folder of them.

        Names as in Hugging Face checkpoints of Llama, Mistral, Qwen2, Qwen3 and OPT. Rotary
        base, rotary scaling and norm epsilon come from `config.json` beside the weights;
        without one they are the defaults of `Constants` (they do not change timing).

        Raises:
            BadInput: no such file, a weight is missing or has another shape.
        """
        read = read_checkpoint(path)

        def take(name: str, *shape: int) -> Tensor:
            return read(name, shape).to(device, DTYPES[dtype])

        return cls(spec, read_constants(path), take)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Return the hidden states [T, hidden] before the last norm.

        Args:
            tokens: ids [T].
            positions: place of each token in its sequence [T].
            attend: attention of a layer; it also keeps keys and values.
        """
        x = functional.embedding(tokens, self._embed)
        if self._learned is not None:
            x = x + functional.embedding(positions + OPT_POSITION_OFFSET, self._learned)
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        for number, layer in enumerate(self.layers):
            q, k, v = self._heads(layer, layer.attention_norm(x), cos, sin)
            x = x + layer.out(attend(number, q, k, v).flatten(1))
            x = x + self._feed_forward(layer, layer.mlp_norm(x))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [rows, vocab] of hidden states [rows, hidden]."""
        return self._head(self._norm(hidden))

    def _heads(
        self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.spec
        qkv = layer.qkv(x).reshape(len(x), -1, spec.head_dim)
        queries_keys, v = torch.split(qkv, [spec.heads + spec.kv_heads, spec.kv_heads], dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            q, k = torch.split(queries_keys, [spec.heads, spec.kv_heads], dim=1)
            queries_keys = torch.cat([layer.query_norm(q), layer.key_norm(k)], dim=1)
        if spec.positions == "rope":
            swapped = queries_keys.roll(spec.head_dim // 2, -1)  # its halves
            queries_keys = torch.addcmul(queries_keys * cos, swapped, sin)
        q, k = torch.split(queries_keys, [spec.heads, spec.kv_heads], dim=1)
        return q, k, v

    def _feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        up = layer.up(x)
        if not self.spec.gated:
            return layer.down(functional.relu(up))
        gate, up = up.chunk(2, dim=-1)
        return layer.down(functional.silu(gate) * up)


class _Builder:
    """Takes weights by their names: OPT's for learned positions, Llama's otherwise."""

    def __init__(self, spec: Model, constants: Constants, take: Take) -> None:
        self.spec, self.take, self.eps = spec, take, constants.norm_eps
        self.opt = spec.positions == "learned"
        self.root = "decoder." if self.opt else ""

    def embedding(self) -> Tensor:
        return self.take(f"{self.root}embed_tokens.weight", self.spec.vocab, self.spec.hidden)

    def learned_positions(self) -> Tensor | None:
        if not self.opt:
            return None
        rows = self.spec.max_length + OPT_POSITION_OFFSET
        return self.take(f"{self.root}embed_positions.weight", rows, self.spec.hidden)

    def output_matrix(self, embedding: Tensor) -> Tensor:
        if self.spec.tied_embeddings:
            return embedding
        return self.take("lm_head.weight", self.spec.vocab, self.spec.hidden)

    def final_norm(self) -> Norm:
        return self._norm(self.root + ("final_layer_norm" if self.opt else "norm"))

    def layer(self, number: int) -> Layer:
        spec, at = self.spec, f"{self.root}layers.{number}."
        q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        attention = at + "self_attn."
        qkv = [(f"{attention}{n}_proj", width) for n, width in (("q", q), ("k", kv), ("v", kv))]
        names = ["fc1", "fc2"] if self.opt else ["mlp.up_proj", "mlp.down_proj"]
        up = [(at + name, spec.ffn) for name in (["mlp.gate_proj"] * spec.gated + names[:1])]
        every = spec.bias == "all"
        return Layer(
            self._norm(at + ("self_attn_layer_norm" if self.opt else "input_layernorm")),
            self._linear(qkv, spec.hidden, bias=spec.bias != "none"),
            self._head_norm(attention + "q_norm"),
            self._head_norm(attention + "k_norm"),
            self._linear(
                [(attention + ("out_proj" if self.opt else "o_proj"), spec.hidden)], q, bias=every
            ),
            self._norm(at + ("final_layer_norm" if self.opt else "post_attention_layernorm")),
            self._linear(up, spec.hidden, bias=every),
            self._linear([(at + names[1], spec.hidden)], spec.ffn, bias=every),
        )

    def _linear(self, parts: list[tuple[str, int]], width: int, *, bias: bool) -> Linear:
        """Return the matrices of `parts` (name, rows) on top of each other."""
        weights = [self.take(f"{name}.weight", rows, width) for name, rows in parts]
        biases = [self.take(f"{name}.bias", rows) for name, rows in parts] if bias else []
        return Linear(_stack(weights), _stack(biases) if biases else None)

    def _norm(self, name: str) -> Norm:
        hidden = self.spec.hidden
        bias = self.take(f"{name}.bias", hidden) if self.spec.norm == "layernorm" else None
        return Norm(self.take(f"{name}.weight", hidden), bias, self.eps)

    def _head_norm(self, name: str) -> Norm | None:
        if not self.spec.qk_norm:
            return None
        return Norm(self.take(f"{name}.weight", self.spec.head_dim), None, self.eps)


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
