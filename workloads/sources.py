"""Sources of lengths by name: parametric, fitted, mixed, registered from outside, or a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points

import numpy as np

from sim.types import Trace
from workloads.base import BadInput, Draw, Ints, bad, unknown
from workloads.config import MIXED, WorkloadConfig
from workloads.lengths.pair import LengthPair, Mixture
from workloads.lengths.parametric import PARAMETRIC
from workloads.lengths.tables import table_names, table_source
from workloads.read import read_trace

ENTRY_POINTS = "bucketsim.workloads"
DEFAULT_MIXTURE = {"alpaca": 0.8, "longbench": 0.2}


def source_names() -> list[str]:
    """Return the built-in and registered sources; the path of a trace file is valid as well."""
    outside = [entry.name for entry in entry_points(group=ENTRY_POINTS)]
    return sorted({*PARAMETRIC, "mixed", *table_names(), *outside})


def is_file(source: str) -> bool:
    """Whether `source` means a trace file: a built-in name goes first."""
    if source in PARAMETRIC or source in MIXED or table_source(source) is not None:
        return False
    return os.path.isfile(source)  # Path.is_file raises on names that are too long


def check_sources(config: WorkloadConfig) -> None:
    """Raise BadInput for a source, or a component of a mixture, that does not exist."""
    for name in (config.source, *(config.mixture or {})):
        built_in = name in PARAMETRIC or name in MIXED or table_source(name) is not None
        if not built_in and not is_file(name) and name not in source_names():
            raise _unknown(config, name)


def read_source(config: WorkloadConfig, path: str) -> Trace:
    """Read a trace file as the config says."""
    return read_trace(
        path,
        config.format,
        config.tokenizer,
        config.max_rows,
        prefix_blocks=config.prefix_blocks,
        hash_block_tokens=config.hash_block_tokens,
    )


def components(config: WorkloadConfig) -> tuple[tuple[str, ...], Mixture]:
    """Return the names of the components of a workload and their mixture; one, if not mixed."""
    weights = {config.source: 1.0}
    if config.source in MIXED:
        weights = config.mixture or DEFAULT_MIXTURE
    draws = [_draw(config, name) for name in weights]
    return tuple(weights), Mixture(draws, list(weights.values()))


def _draw(config: WorkloadConfig, name: str) -> Draw:
    if name in PARAMETRIC:
        if config.input_len is None or config.output_len is None:
            side = "input_len" if config.input_len is None else "output_len"
            raise bad(f"workload.{side}", f"source {name} needs it: a number or {{dist, …}}")
        return LengthPair(config.input_len, config.output_len).draw
    table = table_source(name)
    if table is not None:
        return table.draw
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return _Checked(name, entry.load()).draw
    if is_file(name):
        return _Resampled(read_source(config, name)).draw
    raise _unknown(config, name)


def _unknown(config: WorkloadConfig, name: str) -> BadInput:
    key = "workload.source" if name == config.source else "workload.mixture"
    return unknown(key, "source (nor is it a file)", name, source_names())


@dataclass(frozen=True)
class _Resampled:
    """Requests of a trace, drawn with replacement."""

    trace: Trace

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        rows = rng.integers(len(self.trace), size=n)
        return self.trace.input_len[rows], self.trace.output_len[rows]


@dataclass(frozen=True)
class _Checked:
    """Someone else's source, whose lengths are checked."""

    name: str
    inner: Draw

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        lengths = np.asarray(self.inner(rng, n))
        if lengths.shape != (2, n) or lengths.dtype.kind not in "iu" or (lengths < 1).any():
            message = f"has to give two arrays of {n} whole numbers, each >= 1"
            raise bad(f"source {self.name}", message)
        return lengths[0].astype(np.int64), lengths[1].astype(np.int64)
