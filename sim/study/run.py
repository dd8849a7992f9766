"""Replicated runs and comparisons on the same requests.

Each replication has its own named random streams, children of the root seed: two policies, and two
rates, see the same lengths and the same unit gaps. A task is one replication of one policy; tasks
share nothing, so serial and parallel results are identical.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.costs.catalogue import model_named
from sim.costs.model import StepCost
from sim.study.build import Setup, build, settings
from sim.study.config import Experiment, PolicyChoice, RunConfig, SloConfig
from sim.study.notices import Tally, batch_notices, notices, tally, warmup_notices
from sim.study.power import capped
from sim.study.statistics.batch_means import with_batch_means
from sim.study.statistics.metrics import Frame, Summary, steady_series, summarise
from sim.study.statistics.precision import Precision
from sim.study.statistics.ranking import rankings
from sim.study.statistics.stats import aggregate, differences
from sim.study.statistics.warmup import Warmup, warmup_of
from sim.types import BadInput, CostModel, Trace
from workloads import WorkloadConfig
from workloads import build as build_workload
from workloads.sources import check_sources, components, is_file

STREAMS = ("lengths", "arrivals", "router", "failures", "acceptance")

SATURATION_REQUESTS = 4000
"""Requests served when the saturation rate is measured (design section 5)."""
SATURATION_BACKLOG = 512
"""Requests of an instance, waiting and running, that are in the system then at first."""
SATURATION_WAITING = 0.9
"""Share of the prefills that have to leave some waiting; else twice as many are in the system."""

Progress = Callable[[int, int], None]
"""Called with tasks done and tasks in all."""


@dataclass(frozen=True)
class Replication:
    """One simulated run.

    Attributes:
        index: number of the replication.
        summary: its figures.
        record: its rows.
        tally: what it has to tell (`sim.study.notices`).
        fingerprint: equal for equal requests.
        settled: whether the end of its warm-up (`summary["warmup_s"]`) was found.
        cpu_s: processor time of the simulation, seconds.
    """

    index: int
    summary: Summary
    record: RunRecord
    tally: Tally
    fingerprint: str
    settled: bool
    cpu_s: float


@dataclass(frozen=True)
class StudyResult:
    """All replications of one policy.

    Attributes:
        experiment: what was asked for, with this policy only.
        choice: the policy.
        setup: what it was built to.
        replications: by index.
        summary: means and intervals (`sim.study.statistics.stats.aggregate`).
        notes: what a reader of any output must be told, one line each.
    """

    experiment: Experiment
    choice: PolicyChoice
    setup: Setup
    replications: tuple[Replication, ...]
    summary: Summary
    notes: tuple[str, ...]

    @property
    def summaries(self) -> list[Summary]:
        """The figures of each replication."""
        return [r.summary for r in self.replications]


@dataclass(frozen=True)
class Comparison:
    """Several policies on the same requests.

    Attributes:
        results: one each.
        baseline: label of the policy the others are compared with.
        differences: label -> key -> paired difference to the baseline.
        rankings: figure -> order of the policies and paired tests (`sim.study.statistics.ranking`).
    """

    results: tuple[StudyResult, ...]
    baseline: str
    differences: dict[str, dict[str, Any]]
    rankings: dict[str, dict[str, Any]]


def run(
    experiment: Experiment,
    jobs: int = 1,
    progress: Progress | None = None,
    precision: Precision | None = None,
) -> StudyResult:
    """Run the only policy of an experiment.

    Args:
        experiment: what to run.
        jobs: local processes.
        progress: told how far it is.
        precision: when there are replications enough; None: as many as the experiment says.
    """
    labels = [p.label for p in experiment.policies]
    if len(labels) > 1:
        raise BadInput(
            f"policy: run takes one policy, the config lists {len(labels)} ({', '.join(labels)}); "
            "use compare, or policy=NAME"
        )
    return _studies(experiment, jobs, progress, precision)[0]


def compare(
    experiment: Experiment,
    baseline: str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    precision: Precision | None = None,
) -> Comparison:
    """Run every policy of an experiment on the same requests.

    Args:
        experiment: what to run.
        baseline: label of the policy to compare with; None: the first.
        jobs: local processes.
        progress: told how far it is.
        precision: when there are replications enough, of every policy the same number.
    """
    labels = [p.label for p in experiment.policies]
    chosen = labels[0] if baseline is None else baseline
    if chosen not in labels:
        raise BadInput(f"--baseline: {chosen!r} is not compared; valid: {', '.join(labels)}")
    results = _studies(experiment, jobs, progress, precision)
    base = results[labels.index(chosen)].summaries
    compared = {
        r.choice.label: differences(r.summaries, base) for r in results if r.choice.label != chosen
    }
    ranked = rankings({r.choice.label: r.summaries for r in results})
    return Comparison(tuple(results), chosen, compared, ranked)


def requests_of(experiment: Experiment, replication: int) -> Trace:
    """Return the requests of one replication."""
    lengths, arrivals = (
        np.random.default_rng(_stream(experiment, replication, name)) for name in STREAMS[:2]
    )
    trace = build_workload(experiment.workload, lengths, arrivals)
    _check_classes(experiment, trace.sources)
    return trace


def check_workload(experiment: Experiment) -> None:
    """Refuse sources, and classes of bounds, that do not exist; files are not opened for it.

    Raises:
        BadInput: one line with the name and what would be valid.
    """
    workload = experiment.workload
    check_sources(workload)
    if not any(is_file(name) for name in (workload.source, *(workload.mixture or ()))):
        _check_classes(experiment, components(workload)[0])


def _check_classes(experiment: Experiment, sources: Sequence[str]) -> None:
    for name in experiment.slo.by:
        if name not in sources:
            where, valid = experiment.origins.where(f"slo.by.{name}"), ", ".join(sources)
            raise BadInput(
                f"{where}: slo.by.{name}: the workload has no such class; valid: {valid}"
            )


def saturation_rate(experiment: Experiment) -> float:
    """Return the completions per second of the first policy when requests always wait.

    4,000 requests of the workload's lengths; the first and the last fifth of the completions are
    left out. So many are in the system that prefills leave some waiting, and one that leaves is
    replaced. They are not all there from the start: a policy that prefers some requests to others
    would serve those first, and the middle would not be the workload. To first come first served
    it makes no difference.
    """
    setup = build(experiment, experiment.policies[0])
    entries = [i for i, spec in enumerate(setup.specs) if spec.role != "decode"]
    in_system = SATURATION_BACKLOG * len(entries)
    while in_system < SATURATION_REQUESTS:
        record, first_s, last_s, rate = _saturated(experiment, in_system)
        steps = record.steps
        prefills = (steps["prefill_requests"] > 0) & np.isin(steps["instance"], entries)
        within = (steps["start_s"] >= first_s) & (steps["start_s"] <= last_s)
        waiting = steps["queue_len"][prefills & within] > 0
        if waiting.sum() >= SATURATION_WAITING * len(waiting):
            return rate
        in_system *= 2
    return _saturated(experiment, SATURATION_REQUESTS)[-1]


def _saturated(experiment: Experiment, in_system: int) -> tuple[RunRecord, float, float, float]:
    """Run with a fixed number of requests in the system.

    Returns the record, the first and last completion that count, in seconds, and their rate.
    """
    data = experiment.workload.model_dump() | {
        "arrivals": {"process": "closed", "concurrency": in_system},
        "num_requests": SATURATION_REQUESTS,
        "duration_s": None,
    }
    if is_file(data["source"]):
        data |= {"source": "mixed", "mixture": {data["source"]: 1.0}}
        data |= {"prefix_blocks": None, "hash_block_tokens": None}
    full = replace(
        experiment,
        workload=WorkloadConfig.model_validate(data),
        slo=SloConfig(),
        run=RunConfig(seed=experiment.run.seed),
    )
    setup = build(full, full.policies[0])
    trace = requests_of(full, 0)
    how = settings(full, setup.policy, trace, 0)
    record = simulate(trace, setup.policy, setup.specs, how)
    finish = record.requests["finish_s"]
    done = np.sort(finish[~np.isnan(finish)])
    first, last = len(done) // 5, len(done) - len(done) // 5
    if last - first < 2:
        raise BadInput("workload: too few requests can be served to measure a saturation rate")
    first_s, last_s = float(done[first - 1]), float(done[last - 1])
    return record, first_s, last_s, (last - first) / (last_s - first_s)


# -- tasks --------------------------------------------------------------------------------------


def _studies(
    experiment: Experiment,
    jobs: int,
    progress: Progress | None,
    precision: Precision | None,
) -> list[StudyResult]:
    setups = {choice.label: build(experiment, choice) for choice in experiment.policies}
    done: dict[str, list[Replication]] = {label: [] for label in setups}
    count, enough = 0, experiment.run.replications
    if precision is not None:
        enough = 1  # shows whether the figures are known
    while count < enough:
        _extend(experiment, setups, done, range(count, enough), jobs, progress)
        count = enough
        if precision is not None:
            found = [aggregate([r.summary for r in of]) for of in done.values()]
            enough = precision.wanted(found, experiment.run.replications)
    final = _replicated(experiment, count) if precision else experiment
    return [
        _study(final, choice, setups[choice.label], done[choice.label], precision)
        for choice in experiment.policies
    ]


def _extend(
    experiment: Experiment,
    setups: Mapping[str, Setup],
    done: Mapping[str, list[Replication]],
    indices: range,
    jobs: int,
    progress: Progress | None,
) -> None:
    """Add the replications of the given numbers to those of each policy."""
    tasks = [(choice, i) for choice in experiment.policies for i in indices]
    before = sum(map(len, done.values()))
    for at, (task, replication) in enumerate(
        zip(tasks, _map(experiment, tasks, jobs), strict=True), before + 1
    ):
        done[task[0].label].append(replication)
        if progress is not None:
            progress(at, before + len(tasks))
    if experiment.run.warmup == "mser5":
        for i in indices:
            _cut_alike(experiment, setups, done, i)


def _cut_alike(
    experiment: Experiment,
    setups: Mapping[str, Setup],
    done: Mapping[str, list[Replication]],
    index: int,
) -> None:
    """Cut the longest warm-up of a replication from all its policies, and sum them up again."""
    cut_s = max(of[index].summary["warmup_s"] for of in done.values())
    for label, of in done.items():
        if of[index].summary["warmup_s"] != cut_s:
            summary = summarise(of[index].record, frame(experiment, setups[label], cut_s))
            of[index] = replace(of[index], summary=summary)


def _replicated(experiment: Experiment, count: int) -> Experiment:
    """Return the experiment with the number of replications that --precision came to."""
    given = {**experiment.origins.given, "run.replications": "--precision"}
    return replace(
        experiment,
        run=experiment.run.model_copy(update={"replications": count}),
        origins=replace(experiment.origins, given=given),
    )


def _map(
    experiment: Experiment, tasks: Sequence[tuple[PolicyChoice, int]], jobs: int
) -> Iterable[Replication]:
    """Yield the results of the tasks in their order."""
    if jobs == 1 or len(tasks) == 1:
        return (replicate(experiment, choice, i) for choice, i in tasks)
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=min(jobs, len(tasks)), return_as="generator")
    results: Iterable[Replication] = parallel(
        delayed(replicate)(experiment, choice, i) for choice, i in tasks
    )
    return results


def replicate(experiment: Experiment, choice: PolicyChoice, index: int) -> Replication:
    """Run one replication of one policy."""
    trace = requests_of(experiment, index)
    setup = build(experiment, choice)
    began = time.process_time()
    how = settings(experiment, setup.policy, trace, *engine_seeds(experiment, index))
    record = simulate(trace, setup.policy, setup.specs, how)
    cpu_s = time.process_time() - began
    _check_window(experiment, record)
    warmup = Warmup(experiment.run.warmup_s)
    if experiment.run.warmup == "mser5":
        warmup = warmup_of(record.requests)
    return Replication(
        index,
        summarise(record, frame(experiment, setup, warmup.end_s)),
        record,
        tally(trace.notes, record),
        _fingerprint(trace),
        warmup.settled,
        cpu_s,
    )


def _study(
    experiment: Experiment,
    choice: PolicyChoice,
    setup: Setup,
    done: Sequence[Replication],
    precision: Precision | None,
) -> StudyResult:
    summary = aggregate([r.summary for r in done])
    notes = notices(
        setup.notes,
        [r.tally for r in done],
        same_requests=len(done) > 1 and len({r.fingerprint for r in done}) == 1,
        saturation=summary["saturation"],
    )
    if experiment.run.warmup == "mser5":
        unsettled = sum(not r.settled for r in done)
        notes += warmup_notices([r.summary["warmup_s"] for r in done], unsettled)
    if len(done) == 1:
        cut_s = done[0].summary["warmup_s"]
        series = steady_series(done[0].record, frame(experiment, setup, cut_s))
        summary = with_batch_means(summary, series)
        notes += batch_notices(summary["batch_means"])
    if precision is not None:
        notes += precision.notes(summary, len(done))
    alone = replace(experiment, policies=(choice,))
    return StudyResult(alone, choice, setup, tuple(done), summary, notes)


def frame(experiment: Experiment, setup: Setup, warmup_s: float) -> Frame:
    """Return what the summary of a run needs besides its records."""
    costs = setup.instances[0].costs
    return Frame(
        slo=experiment.slo,
        warmup_s=warmup_s,
        horizon_s=experiment.run.horizon_s,
        gpus=setup.gpus,
        peak_flops_per_s=sum(i.costs.peak_flops_per_s for i in setup.instances),
        flops_per_token=costs.flops_per_token,
        attention_flops_per_pair=costs.attention_flops_per_pair,
        unfloored=_unfloored(experiment, setup),
        clock=experiment.engine.clock,
        power=setup.power,
    )


def _unfloored(experiment: Experiment, setup: Setup) -> tuple[CostModel, ...]:
    """Return the step times of each instance without `engine.min_step_ms`; none: it has none."""
    if not experiment.engine.min_step_ms:
        return ()
    model = model_named(experiment.cluster.model)
    host, where = experiment.engine.host, experiment.origins.where
    costs = [StepCost(i.costs.profile, model, host=host) for i in setup.instances]
    return tuple(
        capped(experiment.power, i.gpu, cost, where)
        for i, cost in zip(setup.instances, costs, strict=True)
    )


def _check_window(experiment: Experiment, record: RunRecord) -> None:
    warmup, arrival = experiment.run.warmup_s, record.requests["arrival_s"]
    last = float(arrival.max()) if len(arrival) else 0.0
    if warmup > last or not len(arrival):
        what = f"workload: no request arrives before {experiment.run.horizon_s} s"
        if len(arrival):
            what = f"run.warmup_s {warmup} leaves no request: the last arrives at {last:g} s"
        raise BadInput(what)


def router_seed(experiment: Experiment, replication: int) -> int:
    """Return the seed of the router's choices in one replication."""
    return int(_stream(experiment, replication, "router").generate_state(1)[0])


def engine_seeds(experiment: Experiment, replication: int) -> tuple[int, int, int]:
    """Return the seeds of one replication that `settings` takes, in its order."""
    accepted = _stream(experiment, replication, "acceptance").generate_state(1)[0]
    return (
        router_seed(experiment, replication),
        failure_seed(experiment, replication),
        int(accepted),
    )


def failure_seed(experiment: Experiment, replication: int) -> int:
    """Return the seed of the failures of instances in one replication."""
    return int(_stream(experiment, replication, "failures").generate_state(1)[0])


def _stream(experiment: Experiment, replication: int, name: str) -> np.random.SeedSequence:
    key = (replication, STREAMS.index(name))
    return np.random.SeedSequence(experiment.run.seed, spawn_key=key)


def _fingerprint(trace: Trace) -> str:
    columns = [c for c in (trace.arrival_s, trace.input_len, trace.output_len) if c is not None]
    return hashlib.sha256(b"".join(c.tobytes() for c in columns)).hexdigest()
