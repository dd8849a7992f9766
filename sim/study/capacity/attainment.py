"""One run judged by its bounds, and ended early when the answer is known.

A run *reaches* a target when the share of its requests within every bound, of all that arrive in
the window (rejected, aborted and unfinished ones miss), is at least the target; with `every_class`
in each component of the workload's mixture, too. Once more requests have missed than the target
allows, the run is ended (`sim.core.misses`): the answer is the one of the whole run.

At another rate a run sees the same requests: the gaps are unit gaps divided by the rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.core.misses import MissLimit, TooManyMisses
from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.study.build import build, settings
from sim.study.config import Experiment, PolicyChoice, PoolConfig
from sim.study.run import engine_seeds, requests_of
from sim.study.statistics.clock import CLIENT
from sim.types import FS_PER_S, BadInput, Trace
from workloads.arrivals import Ramp, TraceTimes
from workloads.sources import is_file

ROUNDING = 1e-9
"""A share this far below the target reaches it."""

BOUNDS = ("ttft_ms", "tpot_ms", "e2e_ms")

ALL = ""
"""Key of all requests together, beside the names of the classes."""


@dataclass(frozen=True)
class Target:
    """What a run has to reach.

    Attributes:
        attainment: share of requests within every bound.
        every_class: in each component of the mixture, not only of all.
    """

    attainment: float = 0.9
    every_class: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.attainment <= 1:
            raise BadInput(f"--attainment: {self.attainment:g}; valid: above 0, up to 1")

    def of(self, trace: Trace) -> dict[str, float]:
        """Return the share asked for, of all requests and of each class."""
        classes = trace.sources if self.every_class else ()
        return dict.fromkeys((ALL, *classes), self.attainment)


@dataclass(frozen=True)
class Shares:
    """Shares of the requests of a run.

    Attributes:
        met: within every bound: of all (key `ALL`) and of each class with requests.
        by_bound: of all, within each bound that is set.
        requests: how many.
    """

    met: Mapping[str, float]
    by_bound: Mapping[str, float]
    requests: int

    def reach(self, least: Mapping[str, float]) -> bool:
        """Whether no share is below what is asked for; a class without requests is no obstacle."""
        return all(self.met.get(key, 1.0) >= share - ROUNDING for key, share in least.items())


def attained(
    experiment: Experiment,
    choice: PolicyChoice,
    index: int,
    least: Mapping[str, float] | None = None,
) -> Shares | None:
    """Run a replication and return its shares; None if it was ended, below what is asked for.

    With a horizon a run may miss what is asked for at its very end: it then has shares, too.

    Args:
        experiment: what to run.
        choice: the policy.
        index: number of the replication.
        least: shares below which a run may be ended, by class (`ALL`: of all); None: none.
    """
    trace = requests_of(experiment, index)
    setup = build(experiment, choice)
    how = settings(experiment, setup.policy, trace, *engine_seeds(experiment, index))
    if least is not None and experiment.engine.ttft_clock == CLIENT:
        how.misses = _limit(experiment, trace, least)
    try:
        record = simulate(trace, setup.policy, setup.specs, how)
    except TooManyMisses:
        return None
    return shares_of(experiment, trace, record)


def shares_of(experiment: Experiment, trace: Trace, record: RunRecord) -> Shares:
    """Return the shares of a finished run, as `sim.study.statistics.metrics` defines them."""
    rows: Mapping[str, NDArray[Any]] = record.requests
    ttft_ms, e2e_ms = experiment.engine.clock.latencies_ms(rows)
    gaps = rows["emitted_tokens"] - 1
    tpot_ms = np.divide(e2e_ms - ttft_ms, gaps, out=np.full(len(gaps), np.nan), where=gaps > 0)
    source = _sources(trace)[rows["request_id"]]
    bounds = np.array(_bounds_ms(experiment, trace))[source]
    counted = rows["arrival_s"] >= experiment.run.warmup_s
    if not counted.any():
        raise BadInput(
            f"{experiment.origins.where('run')}: run: no request arrives between warmup_s and the "
            "end; ask for more requests or another window"
        )
    finished = rows["status"] == "finished"
    within = {
        name: finished & ~(values > bounds[:, at])
        for at, (name, values) in enumerate(zip(BOUNDS, (ttft_ms, tpot_ms, e2e_ms), strict=True))
    }
    every = np.logical_and.reduce(list(within.values()))
    met = {ALL: float(every[counted].mean())}
    for at, name in enumerate(trace.sources):
        mine = counted & (source == at)
        if mine.any():
            met[name] = float(every[mine].mean())
    by_bound = {
        name: float(within[name][counted].mean())
        for at, name in enumerate(BOUNDS)
        if np.isfinite(bounds[:, at]).any()
    }
    return Shares(met, by_bound, int(counted.sum()))


def _limit(experiment: Experiment, trace: Trace, least: Mapping[str, float]) -> MissLimit:
    assert trace.arrival_s is not None, "rated() has seen to it"
    arrival_s = np.rint(trace.arrival_s * FS_PER_S) / FS_PER_S
    counted = arrival_s >= experiment.run.warmup_s
    if experiment.run.horizon_s is not None:
        counted &= arrival_s <= experiment.run.horizon_s
    source = _sources(trace)
    sizes = np.bincount(source[counted], minlength=len(trace.sources)).tolist()
    return MissLimit(
        _bounds_ms(experiment, trace),
        source.tolist(),
        experiment.run.warmup_s,
        _allowed(sum(sizes), least.get(ALL, 0.0)),
        [
            _allowed(size, least.get(name, 0.0))
            for name, size in zip(trace.sources, sizes, strict=True)
        ],
        experiment.engine.clock.api_latency_ms,
    )


def _allowed(requests: int, share: float) -> int:
    """Return how many of the requests may miss."""
    needed = max(math.ceil(requests * (share - ROUNDING)), 0)
    return requests - needed


def _sources(trace: Trace) -> NDArray[np.int64]:
    return np.zeros(len(trace), np.int64) if trace.source is None else trace.source


def _bounds_ms(experiment: Experiment, trace: Trace) -> list[tuple[float, float, float]]:
    """Return the bounds of each source; infinite where there is none."""
    slo = experiment.slo
    found = []
    for name in trace.sources:
        bounds = slo.bounds(name if name in slo.by else None)
        values = [getattr(bounds, key) for key in BOUNDS]
        ttft, tpot, e2e = (math.inf if value is None else value for value in values)
        found.append((ttft, tpot, e2e))
    return found


def shortfall(experiment: Experiment, shares: Shares, target: Target) -> str:
    """Return which bound keeps a run from its target."""
    goal, scale = target.attainment, experiment.slo.scale
    failing = {name: share for name, share in shares.by_bound.items() if share < goal - ROUNDING}
    if failing:
        name, share = min(failing.items(), key=lambda item: item[1])
        bound = getattr(experiment.slo, name)
        value = "" if bound is None else f" ({bound * scale:g} ms)"
        return f"slo.{name}{value} fails: {share:.1%} of the requests meet it"
    classes = {name: share for name, share in shares.met.items() if name != ALL}
    if target.every_class and shares.met[ALL] >= goal - ROUNDING:
        name, share = min(classes.items(), key=lambda item: item[1])
        return f"class {name} fails: {share:.1%} of its requests meet every bound"
    each = ", ".join(f"slo.{name} {share:.1%}" for name, share in shares.by_bound.items())
    return f"the bounds are met one by one ({each}), but not together"


# -- other rates, other pools -------------------------------------------------------------------


def at_rate(experiment: Experiment, rate_per_s: float) -> Experiment:
    """Return the experiment at another rate."""
    arrivals = experiment.workload.arrivals or TraceTimes(process="trace")
    change: dict[str, float] = {"rate": rate_per_s}
    if isinstance(arrivals, TraceTimes):
        change["time_scale"] = 1.0
    workload = experiment.workload.model_copy(
        update={"arrivals": arrivals.model_copy(update=change)}
    )
    return replace(experiment, workload=workload)


def on_pools(experiment: Experiment, pools: Sequence[PoolConfig]) -> Experiment:
    """Return the experiment on other pools, on as many GPUs as they need."""
    gpus = sum(pool.instances * pool.tp * pool.pp for pool in pools)
    cluster = experiment.cluster.model_copy(update={"pools": tuple(pools), "count": gpus})
    return replace(experiment, cluster=cluster)


def rated(experiment: Experiment) -> Experiment:
    """Return the experiment if it can be judged at any rate.

    Raises:
        BadInput: there is no bound, the rate cannot be varied, or the requests cannot be drawn.
    """
    where, slo = experiment.origins.where, experiment.slo
    if not any(getattr(s, key) is not None for s in (slo, *slo.by.values()) for key in BOUNDS):
        raise BadInput(
            f"{where('slo')}: slo: no bound is set to judge by; set slo.ttft_ms, slo.tpot_ms or "
            "slo.e2e_ms (or slo.by.CLASS)"
        )
    arrivals = experiment.workload.arrivals
    varies = hasattr(arrivals, "rate") and not isinstance(arrivals, Ramp)
    if arrivals is not None and not varies:
        raise BadInput(
            f"{where('workload.arrivals')}: workload.arrivals.process: {arrivals.process} has no "
            "one rate to vary; valid: poisson, gamma, constant, burst, diurnal, trace"
        )
    if arrivals is None and not is_file(experiment.workload.source):
        raise BadInput(
            f"{where('workload')}: workload.arrivals is missing; for example "
            "{process: poisson, rate: 1}"
        )
    if experiment.run.warmup_s and experiment.workload.duration_s is None:
        raise BadInput(
            f"{where('run.warmup_s')}: run.warmup_s {experiment.run.warmup_s:g}: at other rates "
            "the requests arrive sooner; set it to 0, or give workload.duration_s"
        )
    requests_of(at_rate(experiment, 1.0), 0)
    return replace(experiment, run=experiment.run.model_copy(update={"warmup": "fixed"}))


def requests_notes(experiment: Experiment) -> list[str]:
    """Return what a reader must know about the requests at different rates."""
    notes = []
    if experiment.run.warmup == "mser5":
        notes.append("run.warmup: mser5 is not used: every request is judged, from the first on")
    if experiment.workload.duration_s is not None:
        notes.append(
            "workload.duration_s: at another rate other requests are drawn; with "
            "workload.num_requests they are the same at every rate"
        )
    if isinstance(experiment.workload.arrivals, TraceTimes | None):
        notes.append(
            "every replication runs the requests of the trace: the intervals do not show how "
            "other requests would do"
        )
    return notes
