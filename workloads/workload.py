"""From the config of a workload to its requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.types import Trace
from workloads.arrivals import Closed, TraceTimes, new_arrivals
from workloads.base import bad
from workloads.config import WorkloadConfig
from workloads.lengths.pair import shares
from workloads.limits import draw_within
from workloads.prefix_blocks import with_shared_prefix
from workloads.replay import replay
from workloads.sources import components, is_file, source_names

__all__ = ["WorkloadConfig", "build", "generate", "source_names"]

MAX_ARRIVAL_S = 1e12
"""Beyond it an arrival is a mistake (milliseconds, a rate of nothing), not a time."""


def build(
    config: WorkloadConfig, lengths_rng: np.random.Generator, arrivals_rng: np.random.Generator
) -> Trace:
    """Return the requests of a workload.

    Args:
        config: the workload.
        lengths_rng: draws lengths, mixture components, priorities and tasks.
        arrivals_rng: draws arrival gaps; at another rate an equal generator gives the same pattern.

    Returns:
        The requests; `arrival_s` is None for `closed` arrivals only. `notes` counts requests
        `dropped` (and why), `truncated` and `outputs_capped`, besides what the reader counted.

    Raises:
        BadInput: an unknown source, a bad file, or a config that does not fit the source.
    """
    trace = _requests(config, lengths_rng, arrivals_rng)
    if trace.arrival_s is None and not isinstance(config.arrivals, Closed):
        message = f"needed, since {config.source} has no arrival times"
        raise bad("workload.arrivals", f"{message}; for example {{process: poisson, rate: 1}}")
    if trace.arrival_s is not None and trace.arrival_s[-1] > MAX_ARRIVAL_S:
        last = f"the last request would arrive at {trace.arrival_s[-1]:.3g} s"
        raise bad("workload.arrivals", f"{last}; at most {MAX_ARRIVAL_S:.0e} s")
    return trace


def generate(config: WorkloadConfig, seed: int) -> Trace:
    """Return the requests of a workload for one seed; without `arrivals`, lengths only."""
    lengths, arrivals = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
    return _requests(config, lengths, arrivals)


def _requests(
    config: WorkloadConfig, lengths_rng: np.random.Generator, arrivals_rng: np.random.Generator
) -> Trace:
    if is_file(config.source):
        trace = replay(config, arrivals_rng)
    else:
        trace = _drawn(config, lengths_rng, arrivals_rng)
    if config.shared_prefix is not None:
        if trace.prefix_group is not None or trace.block_hashes is not None:
            raise bad("workload.shared_prefix", f"{config.source} has prefixes of its own")
        trace = with_shared_prefix(trace, config.shared_prefix, config.max_model_len, lengths_rng)
    if config.priorities is not None:
        picked = shares(lengths_rng, len(trace), list(config.priorities.values()))
        trace = replace(trace, priority=np.array(list(config.priorities), np.int64)[picked])
    if config.tasks is not None:
        picked = shares(lengths_rng, len(trace), list(config.tasks.values()))
        trace = replace(trace, task=picked, tasks=tuple(config.tasks))
    return trace


def _drawn(
    config: WorkloadConfig, lengths_rng: np.random.Generator, arrivals_rng: np.random.Generator
) -> Trace:
    """Draw lengths from the source, arrivals from the process."""
    for key in ("prefix_blocks", "hash_block_tokens"):
        if getattr(config, key) is not None:
            raise bad(f"workload.{key}", f"needs a trace file, not source {config.source}")
    names, mixture = components(config)
    if isinstance(config.arrivals, TraceTimes):
        raise bad("workload.arrivals.process", f"trace needs a file, not source {config.source}")
    arrival, n = new_arrivals(config.arrivals, config.num_requests, config.duration_s, arrivals_rng)
    source, input_len, output_len, counts = draw_within(config, mixture, lengths_rng, n)
    notes = {"dropped": counts["dropped_overlong"], **counts}
    return Trace(input_len, output_len, arrival, source=source, sources=names, notes=notes)
