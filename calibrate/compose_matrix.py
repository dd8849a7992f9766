"""Any dense model out of matrix products and attention of given head counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from calibrate.compose import BYTES, Operators
from calibrate.steps import Steps
from calibrate.tables import Floats, LogGrid, Table, between, filled, line, pivot
from sim.costs.catalogue import Gpu, Model
from sim.costs.profile import GAMMA_WITHOUT_FIT
from sim.types import BadInput

NEEDED = ("gemm", "context_attention", "generation_attention")
"""Kinds of tables; `custom_allreduce` as well for tp > 1."""

ELEMENTWISE_FLOOR_MS = 2.5e-3
"""Shortest norm, rotary embedding or activation: 1.8 to 2.7 us in LLMServingSim's tables of vLLM
0.19 kernels (RTX 4090, RTX PRO 6000)."""

SAMPLER_FLOOR_MS = 20e-3
"""Shortest sampler: 12 to 25 us in the same tables."""

SAMPLER_BYTES = 10
"""Traffic per logit: read as 16 bit, written and read as 32 bit (149 us by this for 208 rows of
128,256 logits on an RTX PRO 6000, 128 us measured)."""

LARGE_READ_BYTES = 256e6
"""KV caches of this size fit into no L2: decode attention then shows the bandwidth."""

STAND_IN = {"h200": "h100"}
"""GPU -> GPU with the same compute, whose context attention serves where its own is impossible."""

IMPOSSIBLE_FRAC = 0.01
"""A context table with more rows than this above the GPU's peak is not used."""


class MatrixOperators(Operators):
    """A dense model out of `gemm`, `context_attention`, `generation_attention`, all-reduce tables.

    A layer is the products qkv, o, gate and up, down at the GPU's share (n or k divided by tp),
    two norms, rotary embedding, query-key norms and activation (a floor plus memory traffic:
    Vidur's layer tables have them too, but of unfused kernels of 2023), and attention at heads/tp
    and KV heads/tp.

    Args:
        tables: of the GPU, by kind.
        stand_in: tables of the GPU in `STAND_IN`, {} where there are none.
        model: what to compose.
        gpu: peak figures.
        tp: tensor-parallel degree.

    Raises:
        BadInput: a kind of table or a head width is missing.
    """

    def __init__(
        self, tables: dict[str, Table], stand_in: dict[str, Table], model: Model, gpu: Gpu, tp: int
    ) -> None:
        for kind in (*NEEDED, *(["custom_allreduce"] if tp > 1 else [])):
            if kind not in tables:
                raise BadInput(f"operator tables of {gpu.name}: no {kind} table has rows of it")
        self._model, self._tp = model, tp
        self._products = _Products(tables["gemm"])
        heads, kv_heads = model.heads // tp, max(1, model.kv_heads // tp)
        context, borrowed = _possible_context(tables, stand_in, gpu)
        generation = tables["generation_attention"]
        self._context = _context_shape(_of_width(context, model), heads, kv_heads)
        self._generation = _generation_shape(_of_width(generation, model), heads, kv_heads)
        self._read_per_ms = _bandwidth(generation)
        if tp > 1:
            self._links = _links(tables["custom_allreduce"], gpu, tp)
        used = [table for kind, table in tables.items() if kind != "context_attention"]
        self.files = tuple(path.name for table in [*used, context] for path in table.files)
        self.most_tokens = int(tables["gemm"].numbers("m").max())
        self.derivation = self._explain(borrowed, kv_heads)

    def dense(self, tokens: ArrayLike) -> Floats:
        """Return matrix products and elementwise operators of all layers, and the embedding."""
        t, m = np.asarray(tokens, dtype=np.float64), self._model
        q, kv = m.heads * m.head_dim // self._tp, max(1, m.kv_heads // self._tp) * m.head_dim
        ffn = m.ffn // self._tp
        inner = (2 if m.gated else 1) * ffn
        layer = self._products.at(t, q + 2 * kv, m.hidden) + self._products.at(t, m.hidden, q)
        layer += self._products.at(t, inner, m.hidden) + self._products.at(t, m.hidden, ffn)
        norm = self._elementwise(t, 4 * m.hidden)  # reads and writes the input and the residual
        layer += 2 * norm + self._elementwise(t, inner + ffn)
        if m.positions == "rope":
            layer += self._elementwise(t, 2 * (q + kv))
        if m.qk_norm:
            layer += self._elementwise(t, 2 * (q + kv))
        return m.layers * layer + norm + self._elementwise(t, 2 * m.hidden)

    def lm_head(self, rows: ArrayLike) -> Floats:
        """Return the output product, the gathering of its parts and a greedy sampler."""
        s, m = np.asarray(rows, dtype=np.float64), self._model
        total = self._products.at(s, m.vocab // self._tp, m.hidden)
        total += SAMPLER_FLOOR_MS + s * m.vocab * SAMPLER_BYTES / self._read_per_ms
        if self._tp > 1:  # an all-gather moves half of what an all-reduce does
            total += self.allreduce(s * m.vocab * BYTES) / 2
        return total

    def prefill(self, steps: Steps) -> Floats:
        """Return context attention: every chunk its share of a launch of n chunks like it.

        A chunk after p cached tokens takes the share l(l+2p)/(l+p)^2 of a prompt of l+p tokens,
        and no less than a prompt of l.
        """
        new, cached = steps.chunk_new.astype(float), steps.chunk_cached.astype(float)
        count = steps.chunks[steps.owner].astype(float)
        work = new * (new + 2 * cached) / (new + cached) ** 2
        whole = self._context.at(count, new + cached) * work
        each = np.maximum(whole, self._context.at(count, new)) / count
        found: Floats = np.bincount(steps.owner, each, minlength=len(steps)).astype(np.float64)
        return found

    def decode(self, batch: ArrayLike, kv: ArrayLike) -> Floats:
        """Return generation attention at the mean length."""
        size = np.asarray(batch, dtype=np.float64)
        return self._generation.at(size, np.asarray(kv, dtype=np.float64) / size + 1)

    def beside(self, steps: Steps) -> Floats:
        """Return generation attention times the assumed gamma: no mixed step was measured."""
        return GAMMA_WITHOUT_FIT * self.decode(steps.batch, steps.kv)

    def allreduce(self, message_bytes: ArrayLike) -> Floats:
        """Return the measured all-reduce."""
        return line(message_bytes, *self._links)

    def _elementwise(self, tokens: Floats, values: int) -> Floats:
        """Return an operator that reads and writes `values` values a token."""
        return ELEMENTWISE_FLOOR_MS + tokens * values * BYTES / self._read_per_ms

    def _explain(self, borrowed: bool, kv_heads: int) -> str:
        text = (
            "Composed from operator times by calibrate/compose_matrix.py, then fitted. Norms, "
            "rotary embedding, activation, sampler: assumed, a floor of 2.5 us (sampler 20 us) plus"
            f" memory traffic at {self._read_per_ms / 1e6:.0f} GB/s, the most that decode attention"
            f" reaches. Decodes beside a chunk: gamma {GAMMA_WITHOUT_FIT:g} is assumed. Host time "
            "and gaps between kernels: assumed hidden (vLLM 0.19: 0-1.5 ms a step)."
        )
        if kv_heads > self._generation.kv_heads:
            text += (
                f" Decode attention of {kv_heads} KV heads: {self._generation.kv_heads:g} at a "
                f"batch {self._generation.factor:g} times as large."
            )
        if borrowed:
            text += (
                " Context attention: that of H100, the same chip; this GPU's own table holds times "
                "below what its peak allows."
            )
        return text


class _Products:
    """Matrix products: log-linear over n and k, linear in m; too wide ones in equal parts."""

    def __init__(self, table: Table) -> None:
        (self._m, self._n, self._k), ms = pivot(table.rows, ("m", "n", "k"))
        for axis, sizes in enumerate((self._m, self._n, self._k)):
            ms = filled(sizes, ms, axis)
        self._log_ms = np.log(ms)

    def at(self, m: Floats, n: int, k: int) -> Floats:
        wide, deep = -(-n // int(self._n[-1])), -(-k // int(self._k[-1]))
        curve = sum(
            u * v * self._log_ms[:, i, j]
            for i, u in between(self._n, n / wide)
            for j, v in between(self._k, k / deep)
        )
        return wide * deep * line(m, self._m, np.exp(curve))


class _Shape:
    """Attention of a head count: a grid over batch and length, at a multiple of the batch."""

    def __init__(self, grid: LogGrid, kv_heads: float, factor: float) -> None:
        self._grid = grid
        self.kv_heads = kv_heads
        self.factor = factor

    def at(self, batch: Floats, length: Floats) -> Floats:
        return self._grid.at(batch * self.factor, length)


def _context_shape(table: Table, heads: int, kv_heads: int) -> _Shape:
    """Return prefill attention; it computes, so KV heads that were not measured matter little."""
    rows = table.rows.assign(length=table.rows["isl"])
    if heads == kv_heads:
        rows = rows[rows["num_heads"] == rows["num_key_value_heads"]]
        factor = max(1.0, heads / float(rows["num_heads"].max()))
        return _Shape(_grid(rows, heads / factor, "batch_size"), kv_heads, factor)
    measured = np.unique(table.numbers("num_key_value_heads"))
    near = float(measured[measured <= kv_heads].max())
    rows = rows[(rows["num_key_value_heads"] == near) & (rows["num_heads"] >= near)]
    return _Shape(_grid(rows, heads, "batch_size"), kv_heads, 1.0)


def _generation_shape(table: Table, heads: int, kv_heads: int) -> _Shape:
    """Return decode attention; it reads, so 40 KV heads are 8 at a batch five times as large."""
    rows = table.rows.assign(length=table.rows["isl"] + table.rows["step"])
    measured = np.unique(table.numbers("num_key_value_heads"))
    near = float(measured[measured <= kv_heads].max())
    factor = kv_heads / near
    rows = rows[rows["num_key_value_heads"] == near]
    return _Shape(_grid(rows, heads / factor, "length"), near, factor)


def _grid(rows: pd.DataFrame, heads: float, grows: str) -> LogGrid:
    """Return times over batch and length, linear between the two nearest head counts.

    `grows` is the axis along which the times that did not fit into memory are added.
    """
    (counts, batches, lengths), ms = pivot(rows, ("num_heads", "batch_size", "length"))
    axis, sizes = (2, lengths) if grows == "length" else (1, batches)
    ms = filled(sizes, ms, axis)
    ms = filled(*((batches, ms, 1) if axis == 2 else (lengths, ms, 2)))
    mixed = sum(weight * ms[at] for at, weight in between(counts, heads, logs=False))
    return LogGrid(batches, lengths, np.asarray(mixed))


def _of_width(table: Table, model: Model) -> Table:
    """Return the rows with the model's head width."""
    rows = table.rows[table.rows["head_dim"] == model.head_dim]
    if not len(rows):
        valid = ", ".join(f"{d:g}" for d in np.unique(table.numbers("head_dim")))
        raise BadInput(
            f"{table.files[0]}: no rows of head_dim {model.head_dim} ({model.name}); there: {valid}"
        )
    return Table(table.files, rows)


def _possible_context(
    tables: dict[str, Table], stand_in: dict[str, Table], gpu: Gpu
) -> tuple[Table, bool]:
    """Return the GPU's context attention, or another's where it is faster than the peak."""
    table = tables["context_attention"]
    rows = table.rows
    pairs = rows["batch_size"] * rows["isl"] ** 2 / 2  # at least so many under the causal mask
    flops = 4 * pairs * rows["num_heads"] * rows["head_dim"]
    impossible = flops / (rows["ms"] / 1e3) > gpu.peak_flops_per_s
    if impossible.mean() <= IMPOSSIBLE_FRAC:
        return Table(table.files, rows[~impossible]), False
    if "context_attention" in stand_in:
        return stand_in["context_attention"], True
    raise BadInput(
        f"{rows['at'][impossible].iloc[0]}: time_ms is below what the peak of {gpu.name} allows "
        f"({impossible.sum()} of {len(rows)} rows are)"
    )


def _bandwidth(generation: Table) -> float:
    """Return the bytes per millisecond that decode attention reaches on large caches."""
    rows = generation.rows
    values = rows["batch_size"] * (rows["isl"] + rows["step"]) * rows["num_key_value_heads"]
    read = 2 * values * rows["head_dim"] * BYTES
    large = read >= min(LARGE_READ_BYTES, float(read.max()))
    return float((read[large] / rows["ms"][large]).max())


def _links(table: Table, gpu: Gpu, tp: int) -> tuple[Floats, Floats]:
    """Return message sizes and times of the all-reduce among `tp` GPUs."""
    rows = table.rows[table.rows["num_gpus"] == tp]
    if not len(rows):
        valid = ", ".join(f"{n:g}" for n in np.unique(table.numbers("num_gpus")))
        raise BadInput(f"{table.files[0]}: no all-reduce among {tp} {gpu.name}; there: {valid}")
    (sizes,), ms = pivot(rows, ("message_size",))
    return sizes, ms
