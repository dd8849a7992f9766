"""The layers of one model at one tp, as they were measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import RegularGridInterpolator

from calibrate.compose import Operators
from calibrate.steps import Steps
from calibrate.tables import Floats, LogGrid, Table, catalogue_model, filled, line, pivot
from sim.costs.catalogue import Gpu, Model
from sim.types import BadInput

NEEDED = ("dense", "attention", "per_sequence")
"""Kinds of tables."""

ONCE = ("embedding", "final_layernorm")
"""Layers that a step runs once; every other one runs in each layer of the model."""

PER_LAYER = {"layernorm": 2}
"""How often a layer of the model runs an operator, where that is not once."""

ALLREDUCE_LATENCY_MS = 20e-3
"""Assumption, as no all-reduce of these GPUs was measured: NCCL over PCIe, small message."""

KV_OFFSET = 16.0
"""Added to cached tokens before their logarithm: zero is one of the sizes measured."""

MIXED_AXES = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")


class LayerOperators(Operators):
    """A model out of `dense`, `attention` and `per_sequence` tables.

    Args:
        tables: of the GPU, by kind.
        model: one that was measured.
        gpu: peak figures.
        tp: a tensor-parallel degree that was measured.

    Raises:
        BadInput: a kind of table, the model or the tp is missing.
    """

    def __init__(self, tables: dict[str, Table], model: Model, gpu: Gpu, tp: int) -> None:
        for kind in NEEDED:
            if kind not in tables:
                raise BadInput(f"operator tables of {gpu.name}: no {kind} table has rows of it")
        dense, attention, rows = (_layout(tables[kind], model, tp) for kind in NEEDED)
        self._model = model
        self._tokens, self._dense_ms = _sum_of_layers(dense, model)
        self._row_counts, self._row_ms = _sum_of_rows(rows)
        self._chunk, self._floor_ms = _chunk_grid(attention)
        self._decode = _decode_grid(attention)
        self._mixed = _Mixed(attention)
        self._link_per_ms = gpu.link_bytes_per_s * tp / (2 * (tp - 1)) / 1e3 if tp > 1 else np.inf
        self.most_tokens = int(self._tokens[-1])
        self.dense_sizes = self._tokens
        self.files = tuple(path.name for kind in NEEDED for path in tables[kind].files)
        self.derivation = (
            "Composed from operator times by calibrate/compose_layers.py, then fitted; dense "
            "layers: the table itself. Several chunks in a step: the shortest launch once, what "
            "each takes above it added. Host time and gaps between kernels: assumed hidden (vLLM "
            "0.19: 0-1.5 ms a step)."
        )
        if tp > 1:
            latency_us = 1e3 * ALLREDUCE_LATENCY_MS
            assumed = f"all-reduce is assumed, {latency_us:g} us and the peak of the link"
            self.derivation += f" The {assumed}: none was measured."
            self.notes = (f"tp {tp}: the {assumed}, not measured",)

    def dense(self, tokens: ArrayLike) -> Floats:
        """Return the measured layers; beyond the largest size in proportion to it."""
        return line(tokens, self._tokens, self._dense_ms)

    def lm_head(self, rows: ArrayLike) -> Floats:
        """Return lm_head and sampler."""
        return line(rows, self._row_counts, self._row_ms)

    def prefill(self, steps: Steps) -> Floats:
        """Return the shortest launch once, and what each chunk takes above it."""
        above = self._alone(steps.chunk_new, steps.chunk_cached) - self._floor_ms
        total = np.bincount(steps.owner, np.maximum(above, 0.0), minlength=len(steps))
        found: Floats = total + self._floor_ms * (steps.chunks > 0)
        return found

    def decode(self, batch: ArrayLike, kv: ArrayLike) -> Floats:
        """Return decode attention at the mean length."""
        size = np.asarray(batch, dtype=np.float64)
        return self._decode.at(size, np.maximum(np.asarray(kv) / size, 1.0))

    def beside(self, steps: Steps) -> Floats:
        """Return what a mixed launch takes above its chunk; several chunks count as one."""
        total = np.bincount(steps.owner, steps.chunk_new * steps.chunk_cached, minlength=len(steps))
        cached = total / steps.new
        mixed = self._mixed.at(steps.new, cached, steps.batch, steps.kv / steps.batch)
        return np.maximum(mixed - self._mixed.alone(steps.new, cached), 0.0)

    def allreduce(self, message_bytes: ArrayLike) -> Floats:
        """Return the assumed all-reduce."""
        size = np.asarray(message_bytes, dtype=np.float64)
        found: Floats = ALLREDUCE_LATENCY_MS + size / self._link_per_ms
        return found

    def _alone(self, new: NDArray[np.int64], cached: NDArray[np.int64]) -> Floats:
        return self._chunk.at(np.maximum(new, 1), cached + KV_OFFSET)


class _Mixed:
    """Attention of a chunk with decodes, log-linear over the part of the grid that is complete."""

    def __init__(self, rows: pd.DataFrame) -> None:
        both = _some(
            rows, (rows["prefill_chunk"] > 0) & (rows["n_decode"] > 0), "chunk and decodes"
        )
        chunks = both["prefill_chunk"].unique()
        sizes = {float(c): set(both["kv_decode"][both["prefill_chunk"] == c]) for c in chunks}
        # two grids interleave: keep the one of the largest chunk
        kept = [c for c in sizes if sizes[max(sizes)] <= sizes[c]]
        both = both[both["prefill_chunk"].isin(kept)]
        both = both[both["kv_decode"].isin(sizes[max(sizes)])]
        cached = set(both["kv_prefill"][both["prefill_chunk"] == max(kept)])
        axes, ms = pivot(both[both["kv_prefill"].isin(cached)], MIXED_AXES)
        ms = filled(axes[3], ms, 3)
        ms = filled(axes[2], ms, 2)
        if np.isnan(ms).any():
            raise BadInput(
                f"{rows['at'].iloc[0]}: attention rows of chunk and decodes: no full grid"
            )
        logs = [np.log(axis + KV_OFFSET * (at == 1)) for at, axis in enumerate(axes)]
        self._ends = [(axis[0], axis[-1]) for axis in logs]
        self._logs = RegularGridInterpolator(logs, np.log(ms), bounds_error=False, fill_value=None)
        self._chunk, _ = _chunk_grid(rows)

    def at(
        self, new: ArrayLike, cached: Floats, batch: NDArray[np.int64], length: Floats
    ) -> Floats:
        parts = [
            np.log(np.asarray(new, dtype=np.float64)),
            np.log(cached + KV_OFFSET),
            np.log(np.asarray(batch, dtype=np.float64)),
            np.log(np.maximum(length, 1.0)),
        ]
        inside = [
            # shorter than measured costs as much as the shortest
            np.maximum(part, low)
            for part, (low, _) in zip(parts, self._ends, strict=True)
        ]
        found: Floats = np.exp(self._logs(np.column_stack(inside)))
        return found

    def alone(self, new: NDArray[np.int64], cached: Floats) -> Floats:
        return self._chunk.at(np.asarray(new, dtype=np.float64), cached + KV_OFFSET)


def _layout(table: Table, model: Model, tp: int) -> pd.DataFrame:
    """Return the rows of a model at a tp."""
    names = table.rows["model"].map(catalogue_model)
    rows = table.rows[(names == model.name) & (table.rows["tp"] == tp)]
    if not len(rows):
        there = sorted({f"{n} tp {t:g}" for n, t in zip(names, table.rows["tp"], strict=True)})
        raise BadInput(f"{table.files[0]}: no rows of {model.name} tp {tp}; {'; '.join(there)}")
    return rows


def measured_layouts(table: Table) -> list[tuple[str, int]]:
    """Return the models (catalogue spelling) and tp of a table, sorted."""
    names = table.rows["model"].map(catalogue_model)
    return sorted({(str(n), int(t)) for n, t in zip(names, table.rows["tp"], strict=True)})


def _sum_of_layers(rows: pd.DataFrame, model: Model) -> tuple[Floats, Floats]:
    """Return token counts and the time of all layers of a step."""
    tokens = np.unique(rows["tokens"].to_numpy(dtype=np.float64))
    total = np.zeros_like(tokens)
    for layer, part in rows.groupby("layer"):
        (sizes,), ms = pivot(part, ("tokens",))
        times = 1 if layer in ONCE else model.layers * PER_LAYER.get(str(layer), 1)
        total += times * line(tokens, sizes, ms)
    return tokens, total


def _sum_of_rows(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return row counts and the time of lm_head and sampler."""
    counts = np.unique(rows["sequences"].to_numpy(dtype=np.float64))
    total = np.zeros_like(counts)
    for _, part in rows.groupby("layer"):
        (sizes,), ms = pivot(part, ("sequences",))
        total += line(counts, sizes, ms)
    return counts, total


def _some(rows: pd.DataFrame, kept: pd.Series[bool], what: str) -> pd.DataFrame:
    """Return some rows of an attention table; `BadInput` if there is none."""
    if not kept.any():
        raise BadInput(f"{rows['at'].iloc[0]}: attention table: no row of {what}")
    return rows[kept]


def _chunk_grid(rows: pd.DataFrame) -> tuple[LogGrid, float]:
    """Return a chunk's attention over its new and cached tokens, and the shortest of all."""
    alone = _some(rows, rows["n_decode"] == 0, "a chunk alone")
    (new, cached), ms = pivot(alone, ("prefill_chunk", "kv_prefill"))
    ms = filled(new, filled(cached + KV_OFFSET, ms, 1), 0)
    return LogGrid(new, cached + KV_OFFSET, ms), float(ms.min())


def _decode_grid(rows: pd.DataFrame) -> LogGrid:
    """Return decode attention over batch and length."""
    alone = _some(rows, (rows["prefill_chunk"] == 0) & (rows["n_decode"] > 0), "decodes alone")
    (batch, length), ms = pivot(alone, ("n_decode", "kv_decode"))
    return LogGrid(batch, length, filled(batch, filled(length, ms, 1), 0))
