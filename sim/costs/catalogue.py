"""Models and GPUs, as data: `catalogue/models.yaml` and `catalogue/gpus.yaml`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from sim.costs.shipped import read_shipped
from sim.types import BadInput

DTYPE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
"""Bytes of a weight or a cached value."""

OPT_POSITION_OFFSET = 2
"""OPT's learned position table has two rows more than positions."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_E = TypeVar("_E", bound=_Entry)


class Model(_Entry):
    """Architecture of a decoder-only transformer."""

    name: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0, description="width of the residual stream")
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    ffn: int = Field(gt=0, description="width of the feed-forward layer")
    gated: bool = Field(description="three feed-forward matrices instead of two")
    vocab: int = Field(gt=0)
    max_length: int = Field(gt=0, description="longest sequence, tokens")
    norm: Literal["layernorm", "rmsnorm"]
    positions: Literal["learned", "rope"]
    qk_norm: bool
    tied_embeddings: bool
    bias: Literal["none", "qkv", "all"]
    params_published: float = Field(gt=0, description="parameters by the model card")

    @property
    def layer_matmul_params(self) -> int:
        """Parameters of one layer's matrices: every token multiplies with each of them."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden * (2 * q + 2 * kv + (3 if self.gated else 2) * self.ffn)

    @property
    def lm_head_params(self) -> int:
        """Parameters of the output matrix: only rows that need logits multiply with it."""
        return self.vocab * self.hidden

    @property
    def params(self) -> int:
        """All parameters: matrices, biases, norms and embeddings."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        norm = self.hidden * (2 if self.norm == "layernorm" else 1)
        bias = 0 if self.bias == "none" else q + 2 * kv
        if self.bias == "all":
            bias += 2 * self.hidden + self.ffn
        qk_norm = 2 * self.head_dim if self.qk_norm else 0
        layer = self.layer_matmul_params + 2 * norm + bias + qk_norm
        embedding = self.lm_head_params * (1 if self.tied_embeddings else 2)
        if self.positions == "learned":
            embedding += (self.max_length + OPT_POSITION_OFFSET) * self.hidden
        return self.layers * layer + embedding + norm

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of a token outside attention: two per matrix parameter."""
        return 2.0 * (self.layers * self.layer_matmul_params + self.lm_head_params)

    @property
    def attention_flops_per_pair(self) -> float:
        """Operations of one query token with one key token: scores and values, all layers."""
        return 4.0 * self.layers * self.heads * self.head_dim

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the weights of one copy of the model."""
        return self.params * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str, tp: int = 1) -> int:
        """Bytes one cached token takes in a whole instance.

        With more GPUs than KV heads each GPU keeps a copy of one head.
        """
        heads = max(self.kv_heads, tp)
        return 2 * self.layers * heads * self.head_dim * DTYPE_BYTES[dtype]


class Gpu(_Entry):
    """Peak figures of a GPU."""

    name: str
    memory_bytes: int = Field(gt=0, description="memory a process sees")
    bandwidth_bytes_per_s: float = Field(gt=0, description="device memory")
    peak_flops_per_s: float = Field(gt=0, description="dense bf16, fp32 accumulation")
    nvlink_bytes_per_s: float | None = Field(gt=0, description="per direction; null: none")
    pcie_bytes_per_s: float = Field(gt=0, description="per direction")
    sms: int | None = Field(gt=0, description="streaming multiprocessors; null: no GPU")

    @property
    def link_bytes_per_s(self) -> float:
        """Bandwidth between GPUs of a node, per direction: NVLink, else PCIe."""
        return self.nvlink_bytes_per_s or self.pcie_bytes_per_s


def model_named(name: str) -> Model:
    """Return a model of the catalogue; `BadInput` lists them."""
    return _pick("model", name, models())


def gpu_named(name: str) -> Gpu:
    """Return a GPU of the catalogue; `BadInput` lists them."""
    return _pick("GPU", name, gpus())


@cache
def models() -> dict[str, Model]:
    """Return the models of the catalogue by name."""
    return {name: Model(name=name, **entry) for name, entry in read_entries("models").items()}


@cache
def gpus() -> dict[str, Gpu]:
    """Return the GPUs of the catalogue by name."""
    return {name: Gpu(name=name, **entry) for name, entry in read_entries("gpus").items()}


def unknown(kind: str, name: str, valid: Iterable[str]) -> BadInput:
    """Return the error for a name that is none of `valid`, with the nearest ones."""
    names = sorted(valid)
    wanted = name.lower()
    near = [n for n in names if n.startswith(wanted)] or get_close_matches(wanted, names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return BadInput(f"unknown {kind} '{name}'{hint}; valid: {', '.join(names)}")


def _pick(kind: str, name: str, entries: dict[str, _E]) -> _E:
    if name not in entries:
        raise unknown(kind, name, entries)
    return entries[name]


def read_entries(file: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a file of the catalogue, by name."""
    path = Path(__file__).parent / "catalogue" / f"{file}.yaml"
    entries: dict[str, dict[str, Any]] = read_shipped(path)
    return entries
