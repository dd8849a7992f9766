"""Replay of a trace file: its requests in their order, at its times or new ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.types import Trace
from workloads.arrivals import TraceTimes, new_arrivals
from workloads.base import Floats, Ints, bad
from workloads.config import WorkloadConfig
from workloads.limits import Cut, cut
from workloads.sources import read_source


def replay(config: WorkloadConfig, rng: np.random.Generator) -> Trace:
    """Return the requests of the file `config.source`.

    Args:
        config: the workload.
        rng: draws arrival gaps where they are not the file's own.

    Raises:
        BadInput: a bad file, or one that has fewer requests than asked for.
    """
    trace = read_source(config, config.source)
    lengths = cut(config, trace.input_len, trace.output_len)
    rows = np.flatnonzero(lengths.keep)
    if not len(rows):
        raise bad(config.source, f"no request fits max_model_len = {config.max_model_len}")
    arrival, n = _arrivals(config, trace, rows, rng)
    if n > len(rows):
        key = "duration_s" if config.num_requests is None else "num_requests"
        advice = f"source: mixed, mixture: {{{config.source}: 1}} draws with replacement"
        message = f"{n} requests, but {config.source} has {len(rows)}; {advice}"
        raise bad(f"workload.{key}", message)
    seen = len(trace) if n == len(rows) else int(rows[n - 1]) + 1
    return _taken(trace, lengths.notes(rows[:n], seen), lengths, rows[:n], arrival)


def _arrivals(
    config: WorkloadConfig, trace: Trace, rows: Ints, rng: np.random.Generator
) -> tuple[Floats | None, int]:
    process, n = config.arrivals, config.num_requests
    if process is None and trace.arrival_s is not None:
        process = TraceTimes(process="trace")
    if n is None and (config.duration_s is None or isinstance(process, TraceTimes)):
        n = len(rows)
    if not isinstance(process, TraceTimes):
        return new_arrivals(process, n, config.duration_s, rng)
    if trace.arrival_s is None:
        message = f"trace, but {config.source} has no arrival times"
        raise bad("workload.arrivals.process", message)
    arrival = trace.arrival_s[rows] * _stretch(process, trace.arrival_s[rows])
    if config.duration_s is not None:
        n = int(np.searchsorted(arrival, config.duration_s))
        if n == 0:
            raise bad("workload.duration_s", f"no arrival before {config.duration_s:g} s")
    return arrival[:n], len(arrival) if n is None else n


def _stretch(process: TraceTimes, arrival: Floats) -> float:
    """Return the factor on the times: a rate is meant over all requests that fit."""
    if process.rate is None:
        return process.time_scale
    span_s = float(arrival[-1] - arrival[0])
    if span_s == 0:
        raise bad("workload.arrivals.rate", "the trace's requests all arrive at once")
    return (len(arrival) - 1) / span_s / process.rate


def _taken(
    trace: Trace, counts: dict[str, int], lengths: Cut, rows: Ints, arrival: Floats | None
) -> Trace:
    dropped = trace.notes["dropped"] + counts["dropped_overlong"]
    hashes = trace.block_hashes
    return replace(
        trace,
        input_len=lengths.input_len[rows],
        output_len=lengths.output_len[rows],
        arrival_s=arrival,
        source=_at(trace.source, rows),
        priority=_at(trace.priority, rows),
        task=_at(trace.task, rows),
        prefix_group=_at(trace.prefix_group, rows),
        prefix_len=_at(trace.prefix_len, rows),
        block_hashes=None if hashes is None else tuple(hashes[row] for row in rows),
        notes={**trace.notes, **counts, "dropped": dropped},
    )


def _at(column: Ints | None, rows: Ints) -> Ints | None:
    return None if column is None else column[rows]
