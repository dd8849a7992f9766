"""What a measured serving run says: its requests and their latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.types import BadInput, Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MS_PER_S = 1e3
METRICS = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2E"}
"""Latencies that are compared: key of the output -> what tables call it."""

RECONSTRUCTED = "arrivals reconstructed: per-request errors not shown"

SHARED = "shared prefixes"

BENCH_TOOL = "vllm bench serve"


@dataclass(frozen=True)
class Measured:
    """A measured run, requests in order of arrival.

    Attributes:
        path: the file.
        name: the run in it.
        trace: the requests; arrivals count from the first.
        latency_ms: `ttft`, `tpot`, `e2el` -> milliseconds, shape (n,); NaN where undefined.
        arrivals: `measured`, `reconstructed` (redrawn from rate, burstiness and seed), or `closed`
            (a fixed number of clients, each waiting for its answer).
        concurrency: clients, for `closed`.
        hints: what the file says about the engine, by the file's own names.
        clock: whose watch the latencies are by, `client` or `engine`; None: not known, `client`.
        prefix_blocks: file of the block ids; None: there is none.
        notes: what a reader of any output must be told.
    """

    path: Path
    name: str
    trace: Trace
    latency_ms: Mapping[str, Floats]
    arrivals: Literal["measured", "reconstructed", "closed"] = "measured"
    concurrency: int | None = None
    hints: Mapping[str, Any] = field(default_factory=dict)
    clock: str | None = None
    prefix_blocks: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def paired(self) -> bool:
        """Whether each simulated request stands for a measured one."""
        return self.arrivals == "measured"

    @property
    def arrival_s(self) -> Floats:
        """Arrivals, seconds from the first, shape (n,)."""
        if self.trace.arrival_s is None:
            return np.zeros(len(self.trace))
        return self.trace.arrival_s

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last token."""
        return float((self.arrival_s + self.latency_ms["e2el"] / MS_PER_S).max())

    def with_groups(self, group: Floats, shared_tokens: Floats) -> Measured:
        """Return the run with prefix groups (NaN: none) and the tokens shared in them."""
        trace = replace(
            self.trace,
            prefix_group=np.nan_to_num(group, nan=-1.0).astype(np.int64),
            prefix_len=np.nan_to_num(shared_tokens).astype(np.int64),
        )
        note = f"{SHARED}: from prefix_group and shared_prefix_tokens"
        return replace(self, trace=trace, notes=(*self.notes, note))

    def with_blocks(self, hashes: Sequence[tuple[int, ...]], path: Path, note: str) -> Measured:
        """Return the run with the block ids of its prompts, read from `path`."""
        trace = replace(self.trace, block_hashes=tuple(hashes), prefix_group=None, prefix_len=None)
        kept = tuple(n for n in self.notes if not n.startswith(SHARED))
        return replace(self, trace=trace, prefix_blocks=path, notes=(*kept, f"{SHARED}: {note}"))


def latencies_ms(ttft_ms: Floats, e2e_ms: Floats, output_len: Ints) -> dict[str, Floats]:
    """Return the three latencies; TPOT is NaN for one token."""
    gaps = output_len - 1
    tpot = np.full(len(gaps), np.nan)
    np.divide(e2e_ms - ttft_ms, gaps, out=tpot, where=gaps > 0)
    return {"ttft": ttft_ms, "tpot": tpot, "e2el": e2e_ms}


def in_flight(arrival_s: Floats, e2e_ms: Floats) -> Ints:
    """Return how many other requests are in the system at each arrival, shape (n,)."""
    order = np.sort(arrival_s + e2e_ms / MS_PER_S)
    came = np.searchsorted(arrival_s, arrival_s, side="left")
    left = np.searchsorted(order, arrival_s, side="right")
    return (came - left).astype(np.int64)


def read_measured(path: Path, run: str | None = None, seed: int = 0) -> Measured:
    """Read a measured run of either kind.

    Args:
        path: JSON of `vllm bench serve --save-detailed`, or CSV (gzip or not).
        run: which run of a table that holds several.
        seed: of the benchmark, where arrivals have to be redrawn.

    Raises:
        BadInput: one line with file, field and what would be valid.
    """
    from sim.study.fidelity.bench_file import read_bench
    from sim.study.fidelity.run_table import read_table
    from workloads.base import Limits
    from workloads.formats.base import Source

    if not path.is_file():
        raise BadInput(f"{path}: no such file; a measured result is JSON or CSV")
    kind = Source(path, Limits()).kind
    if kind == "json":
        return read_bench(path, seed)
    if kind == "csv":
        return read_table(path, run)
    raise BadInput(f"{path}: is {kind}; valid: JSON of {BENCH_TOOL} --save-detailed, or CSV")
