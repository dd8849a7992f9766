"""Figures that come from lengths and the cost model, not from whole runs alone: 2a, 2b and 3b."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.study.config import resolve
from sim.study.paper import figure_data as data
from sim.study.paper.recipes import Figure
from sim.study.run import requests_of
from sim.study.statistics.stats import student_t
from sim.study.sweeps.shards import Task
from sim.types import BadInput
from workloads import WorkloadConfig
from workloads.sources import components

PHASES = ("prefill", "decode")
BUSY, FLOPS, PADDING = "busy", "flops", "padding"
PANELS = {BUSY: "phase_busy", FLOPS: "phase_mfu"}
REVIEWS, WAITING, LONGEST = 3, 1000, 4096
"""How often bucketing is timed, and what waits then: requests, and their longest prompt."""
PROMPTS = 4096
"""Prompts of a replication that random batches are cut from."""


def histogram(figure: Figure, _folder: Path) -> Iterator[data.Row]:
    """Yield counts of prompt lengths, drawn anew by every seed, and their mean and median."""
    recipe = figure.recipe
    if recipe.source is None or recipe.bins is None:
        raise BadInput(f"{figure.source}: draw: histogram needs source and bins")
    draw = components(WorkloadConfig(source=recipe.source))[1].draw
    edges = np.arange(0, recipe.bins.upto + recipe.bins.width / 2, recipe.bins.width)
    counts, means, medians = [], [], []
    for seed in range(figure.seeds):
        lengths = draw(np.random.default_rng(seed), recipe.samples)[0] * recipe.chars_per_token
        counts.append(np.histogram(lengths, edges)[0].astype(np.float64))
        means.append(float(lengths.mean()))
        medians.append(float(np.median(lengths)))
    for at, start in enumerate(edges[:-1]):
        values = [float(of[at]) for of in counts]
        yield data.mean_row(data.ALL, recipe.source, start + recipe.bins.width / 2, values)
    for name, values in (("mean", means), ("median", medians)):
        found = student_t(values)
        yield data.Row(data.MARKS, name, found.mean, "", 0.0, found.low, found.high, found.n)


def utilisation(figure: Figure, folder: Path) -> Iterator[data.Row]:
    """Yield what each phase does with its pool, and what random batches waste, by length class."""
    for at, point in enumerate(figure.points):
        key = "+".join(point.values["workload.mixture"])
        name = figure.recipe.names.get(key, key)
        shards = data.shards_of(figure, point, folder)
        for panel, figure_key in PANELS.items():
            for phase in PHASES:
                values = [float(shard[f"{figure_key}_{phase}"]) for shard in shards]
                scaled = [value * figure.recipe.y.factor for value in values]
                yield data.mean_row(panel, phase, at, scaled, name)
        prompts = [_prompts(figure.tasks[task]) for task in point.tasks]
        for size in figure.recipe.batch_sizes:
            waste = [0.0 if figure.twin else wasted(lengths, size) for lengths in prompts]
            yield data.mean_row(PADDING, name, size, [w * figure.recipe.y.factor for w in waste])


def wasted(lengths: NDArray[np.int64], size: int) -> float:
    """Return the share of padded tokens when batches of `size` follow one another."""
    batches = lengths[: len(lengths) // size * size].reshape(-1, size)
    return 1 - float(batches.sum()) / float(batches.max(axis=1).sum() * size)


def _prompts(task: Task) -> NDArray[np.int64]:
    """Return prompt lengths of a task's workload, cut as it says."""
    config = json.loads(task.config)
    config["workload"] |= {
        "duration_s": None,
        "num_requests": PROMPTS,
        "arrivals": {"process": "all-at-once"},
    }
    config["run"] |= {"stop": "drain", "horizon_s": None}
    return np.asarray(requests_of(resolve(config, "figures"), task.replication).input_len)


def bucketing_note() -> list[str]:
    """Return what bucketing takes on this machine, for a caption only: no result depends on it."""
    import policies
    from sim.types import Request

    policy: Any = policies.load("bucketserve")
    draw = np.random.default_rng(0)
    found_s = []
    for _ in range(REVIEWS):
        made = policy(policy.Config())
        queue = made.new_queue()
        lengths = draw.integers(1, LONGEST, WAITING)
        begin_s = time.perf_counter()
        for at, length in enumerate(lengths.tolist()):
            queue.push(Request(at, 0, float(at), length))
        made.midpoints.adjust(queue, 0, 0.0)
        found_s.append(time.perf_counter() - begin_s)
    each_us = min(found_s) / WAITING * 1e6
    return [
        f"Measured when drawn: {each_us:.2g} us of wall time a request to assign {WAITING:,} "
        "requests and review the buckets once."
    ]
