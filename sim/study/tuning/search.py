"""Tuning: a search for the parameters of the highest capacity and the lowest p99 TTFT.

* *Objectives*: the capacity (`capacity.search`, to 2 %) and the 99th percentile of the
  time to first token at one rate for all trials, a share of the baseline's capacity.
* *Common random numbers*: every trial sees the same requests and climbs the same ladder of rates.
* *Search*: Optuna's multi-objective TPE, seeded. Trial 0 is the config's own parameters, the
  *baseline*. Trials are chosen in batches of `BATCH`, whatever the number of processes, so that the
  result does not depend on it.
* *Front*: the trials that no other beats in both. They are the best of many on the requests they
  were chosen by, and so look better than they are: they and the baseline are measured again on as
  many replications that the search has not seen, and judged by those.
* A trial whose parameters do not fit together, or that fails, is counted with its message.

Complexity: about 8 runs a replication and trial; most are ended early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.study.build import build
from sim.study.capacity.attainment import Target, at_rate
from sim.study.config import Experiment
from sim.study.notices import by_point
from sim.study.run import requests_of
from sim.study.statistics.stats import Interval, student_t
from sim.study.tuning.space import Space, resolved
from sim.study.tuning.trials import (
    Failed,
    Measured,
    Measurements,
    Result,
    Yardstick,
    kept,
    yardstick,
)
from sim.types import BadInput, SimulationError

if TYPE_CHECKING:
    from optuna import Study

BATCH = 4
"""Trials that are chosen at once: each knows the results of all earlier batches."""
FEWEST = 2
MOST = 10_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trial:
    """One choice of parameters.

    Attributes:
        number: 0 is the baseline.
        label: of its policy.
        values: of the keys that vary, by config key.
        data: its config, as plain data.
        result: what it came to on the replications of the search.
    """

    number: int
    label: str
    values: Mapping[str, Any]
    data: Mapping[str, Any]
    result: Result

    @property
    def measured(self) -> Measured:
        """The result of a trial that did not fail."""
        assert isinstance(self.result, Measured)
        return self.result


@dataclass(frozen=True)
class Candidate:
    """A trial of the front, or the baseline, measured again.

    Attributes:
        trial: the trial.
        fresh: what it came to on replications that the search has not seen.
        chosen: whether it is on the front of the search.
        holds: whether no other candidate beats it on the fresh replications.
    """

    trial: Trial
    fresh: Result
    chosen: bool
    holds: bool


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        space: what it chose from.
        how: how trials were measured.
        load: share of the baseline's capacity at which p99 TTFT was measured.
        trials: in their order.
        repeated: trials that chose what an earlier one had, and were not run again.
        candidates: the baseline first, then the front by rising capacity.
        notes: what a reader must be told.
    """

    space: Space
    how: Yardstick
    load: float
    trials: tuple[Trial, ...]
    repeated: int
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> list[Trial]:
        """The trials that came to nothing."""
        return [t for t in self.trials if isinstance(t.result, Failed)]


def tune(
    space: Space,
    target: Target,
    count: int,
    load: float,
    folder: Path | None = None,
    jobs: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
) -> Tuning:
    """Search for good parameters, and measure the best again.

    Args:
        space: what to choose from.
        target: what a rate has to reach to be within the capacity.
        count: trials, the baseline included.
        load: share of the baseline's capacity at which p99 TTFT is measured.
        folder: keeps measurements; None: they are not kept.
        jobs: local processes.
        resume: use the measurements that the folder has.
        progress: told how many trials there are.

    Raises:
        BadInput: nothing can be searched, or the folder has measurements and `resume` is not set.
        SimulationError: the baseline or every other trial fails.
    """
    if not FEWEST <= count <= MOST:
        raise BadInput(f"--trials: {count}; valid: {FEWEST} to {MOST}, the config's own included")
    optuna = _optuna()
    if folder is not None and kept(folder) and not resume:
        raise BadInput(
            f"folder {folder}: has {kept(folder)} measurements; go on with --resume, or give "
            "another --out"
        )
    how = yardstick(space.baseline, target, load, jobs)
    made = Measurements(space.source, how, folder, jobs)
    trials = _searched(optuna, space, made, count, progress)
    good = [t for t in trials if isinstance(t.result, Measured)]
    if len(good) < FEWEST:
        raise SimulationError(
            f"{count - 1} of {count - 1} trials failed, the first: {_first_error(trials)}"
        )
    candidates = _again(space, trials, made)
    repeated = count - len({made.name(t.data, _seen(space)) for t in trials})
    notes = (*space.notes, *_notes(space, how, load, candidates), *_told(space, trials))
    return Tuning(space, how, load, trials, repeated, candidates, notes)


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError:
        raise BadInput("tune: optuna is not installed; pip install 'bucketsim[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# -- searching ----------------------------------------------------------------------------------


def _seen(space: Space) -> range:
    """Return the replications of the search."""
    return range(space.baseline.run.replications)


def _searched(
    optuna: Any, space: Space, made: Measurements, count: int, progress: Progress | None
) -> tuple[Trial, ...]:
    sampler = optuna.samplers.TPESampler(seed=space.seed)
    study = optuna.create_study(directions=("maximize", "minimize"), sampler=sampler)
    trials = [_baseline(study, space, made)]
    while len(trials) < count:
        size = min(BATCH, count - len(trials))
        asked = [study.ask() for _ in range(size)]
        chosen = [space.suggested(trial) for trial in asked]
        results = made.of([data for _, _, data in chosen], _seen(space))
        for ask, (label, values, data), result in zip(asked, chosen, results, strict=True):
            trials.append(Trial(len(trials), label, values, data, result))
            _tell(study, ask, result)
        if progress is not None:
            progress(len(trials), count)
    return tuple(trials)


def _baseline(study: Study, space: Space, made: Measurements) -> Trial:
    """Measure the config's own parameters; the sampler learns of them if it could choose them."""
    data = space.baseline.resolved()
    result = made.of([data], _seen(space))[0]
    if isinstance(result, Failed):
        raise SimulationError(f"the config's own parameters fail: {result.error}")
    enqueued = space.enqueued()
    if enqueued is not None:
        study.enqueue_trial(enqueued)
        ask = study.ask()
        space.suggested(ask)
        _tell(study, ask, result)
    label = space.baseline.policies[0].label
    return Trial(0, label, space.baseline_values(), data, result)


def _tell(study: Study, ask: Any, result: Result) -> None:
    """Tell the sampler; latencies in logarithms, so that hopeless ones do not blur the others."""
    if isinstance(result, Failed):
        from optuna.trial import TrialState

        study.tell(ask, state=TrialState.FAIL)
    else:
        capacity, ttft_ms = objectives(result)
        study.tell(ask, (capacity, math.log(max(ttft_ms, 1e-9))))


def objectives(measured: Measured) -> tuple[float, float]:
    """Return capacity and p99 TTFT, means over replications."""
    return student_t(measured.capacity_per_s).mean, student_t(measured.p99_ttft_ms).mean


def front(results: Sequence[Result]) -> list[int]:
    """Return the places of the results that none beats, by rising capacity; equal ones once."""
    points = {
        at: objectives(result) for at, result in enumerate(results) if isinstance(result, Measured)
    }
    best: list[int] = []
    for at in sorted(points, key=lambda at: (-points[at][0], points[at][1], at)):
        if not best or points[at][1] < points[best[-1]][1]:
            best.append(at)
    return best[::-1]


# -- the front, again ---------------------------------------------------------------------------


def _again(space: Space, trials: Sequence[Trial], made: Measurements) -> tuple[Candidate, ...]:
    """Measure the baseline and the front on replications that the search has not seen."""
    best = front([t.result for t in trials])
    again = [trials[at] for at in dict.fromkeys((0, *best))]
    count = space.baseline.run.replications
    fresh = made.of([t.data for t in again], range(count, 2 * count))
    hold = front(fresh)
    return tuple(
        Candidate(trial, result, trial.number in best, at in hold)
        for at, (trial, result) in enumerate(zip(again, fresh, strict=True))
    )


def gain(candidate: Candidate, baseline: Candidate, key: str) -> Interval:
    """Return the paired difference to the baseline on the fresh replications, in percent of it.

    Args:
        candidate: of the front.
        baseline: the config's own parameters.
        key: `capacity_per_s` or `p99_ttft_ms`.
    """
    ours, theirs = getattr(candidate.fresh, key, ()), getattr(baseline.fresh, key, ())
    if not ours or not theirs:
        return student_t([math.nan])
    pairs = zip(ours, theirs, strict=True)
    return student_t([(a / b - 1) * 100 if b else math.nan for a, b in pairs])


# -- what a reader must be told -----------------------------------------------------------------


def _first_error(trials: Sequence[Trial]) -> str:
    return next(t.result.error for t in trials if isinstance(t.result, Failed))


def _notes(space: Space, how: Yardstick, load: float, candidates: Sequence[Candidate]) -> list[str]:
    notes = []
    if not how.reached:
        notes.append(
            "the config's own parameters reach the target at no rate: p99 TTFT is compared at "
            f"{load:g} of their saturation rate"
        )
    base = candidates[0].trial.measured
    fewer = [c for c in candidates[1:] if c.trial.measured.unserved > base.unserved]
    for c in fewer:
        notes.append(
            f"trial {c.trial.number}: {c.trial.measured.unserved:.2%} of the requests do not "
            f"finish at {how.rate_per_s:.4g} requests/s (baseline {base.unserved:.2%}); its TTFT "
            "is that of the others"
        )
    opened = [str(c.trial.number) for c in candidates if c.trial.measured.open]
    if opened:
        notes.append(
            f"trial {', '.join(opened)}: the target is reached at every rate tried; the capacity "
            "is at least what is given: raise workload.num_requests"
        )
    lost = sum(isinstance(c.fresh, Failed) for c in candidates)
    if lost:
        notes.append(f"{lost} of {len(candidates)} fail on the fresh replications")
    if space.baseline.run.replications == 1:
        notes.append("one replication gives no interval; raise run.replications")
    if _same_requests(space.baseline, how.rate_per_s):
        notes.append(
            "every replication has the same requests: those of the fresh ones were seen in the "
            "search, and do not show how the front does on others"
        )
    return notes


def _told(space: Space, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return what configs and runs of the trials have to tell, with how many of them do."""
    tallies = []
    for trial in trials:
        if isinstance(trial.result, Failed):
            continue
        # the baseline's data has the defaults written out: who set what is known before that
        chosen = space.baseline if trial.number == 0 else resolved(trial.data, space.source)
        notes = build(chosen, chosen.policies[0]).notes
        tallies.append(dict.fromkeys(notes, 0) | trial.measured.tally)
    return by_point(tallies, "trials")


def _same_requests(experiment: Experiment, rate_per_s: float) -> bool:
    """Whether the first fresh replication has the requests of the first of the search."""
    there = at_rate(experiment, rate_per_s)
    once, again = (requests_of(there, i) for i in (0, experiment.run.replications))
    return all(
        np.array_equal(getattr(once, name), getattr(again, name))
        for name in ("arrival_s", "input_len", "output_len")
    )
