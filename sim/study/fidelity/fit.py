"""Host and API constants from a measured run: the only figures a run may teach the simulator.

A replay says which steps, rows and prefill steps lie between a request's arrival, its first and
its last token. With those counts held, its latencies are linear in the constants. What is made
small is, over the named rows, the sum of soft-l1 losses of log(simulated / measured) of TTFT, TPOT
and E2E, each in units of what repeated real runs differ by (`NOISE`). The run is replayed with the
constants found, and so on; the mean of the last rounds is the result, for when a step begins
against an arrival is chance, and one round's counts hold it. Uncertainty: jackknife over ten blocks
of consecutive rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from sim.study.config import Experiment
from sim.study.fidelity.measured import Floats, Ints, Measured
from sim.study.fidelity.replay import Replayed, replay
from sim.study.output import step_columns
from sim.types import BadInput

NOISE = {"ttft": 0.055, "tpot": 0.0225, "e2el": 0.0165}
"""Spread of repeated real runs, fractions (spec: costs.md section 6, middle of each range)."""

BLOCKS = 10
"""Of the jackknife."""

ROUNDS, AVERAGED = 12, 8
"""Replays, and how many of the last are averaged."""


@dataclass(frozen=True)
class Constant:
    """A constant that may be fitted.

    Attributes:
        about: what it is.
        start: first guess, ms: the middle of what costs.md section 1 reports.
    """

    about: str
    start: float


CONSTANTS = {
    "host_step_ms": Constant("host time of every step", 1.0),
    "host_seq_ms": Constant("host time per row of a step", 0.1),
    "host_prefill_ms": Constant("more for a step that holds prompt tokens", 5.0),
    "api_latency_ms": Constant("outside the engine, of every request", 10.0),
}
"""Key of `engine` -> what may be learnt from a run. Nothing else may."""

ExperimentOf: TypeAlias = Callable[[Sequence[str]], Experiment]
"""The experiment of a replay with some `key=value` on top."""

Counts: TypeAlias = dict[str, Floats]
"""Metric -> milliseconds a request takes per millisecond of each constant, shape (n, constants)."""


@dataclass(frozen=True)
class Fitted:
    """What came of a fit.

    Attributes:
        values_ms: constant -> value.
        errors_ms: constant -> standard error.
        rows: first and last row used, from 0, in order of arrival.
        used: how many.
        run: the run they are of.
        before: mean loss with all of them 0.
        after: mean loss at the result.
        replays: simulations it took.
    """

    values_ms: dict[str, float]
    errors_ms: dict[str, float]
    rows: tuple[int, int]
    used: int
    run: str
    before: float
    after: float
    replays: int

    @property
    def provenance(self) -> str:
        """Where the constants come from, one line."""
        first, last = self.rows
        return f"fitted on rows {first}-{last} ({self.used} requests) of {self.run}"

    def overrides(self) -> list[str]:
        """Return the constants as `key=value`."""
        return [f"engine.{name}={value:.6g}" for name, value in self.values_ms.items()]


def parse_constants(text: str) -> list[str]:
    """Return the names of `--fit a,b`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CONSTANTS:
            raise BadInput(f"--fit: {name!r} may not be fitted; valid: {', '.join(CONSTANTS)}")
    if not names:
        raise BadInput(f"--fit: names no constant; valid: {', '.join(CONSTANTS)}")
    return list(dict.fromkeys(names))


def parse_rows(text: str | None, count: int) -> Ints:
    """Return the rows of `--rows FIRST:END` (END not included); None: all."""
    if text is None:
        return np.arange(count)
    first, colon, end = text.partition(":")
    try:
        low, high = int(first or 0), int(end or count)
    except ValueError:
        low, high = 0, -1
    if not colon or not 0 <= low < high <= count:
        raise BadInput(f"--rows {text}: expected FIRST:END within 0:{count}, END not included")
    return np.arange(low, high)


def fit_constants(
    measured: Measured, experiment_of: ExperimentOf, names: Sequence[str], rows: Ints
) -> Fitted:
    """Fit constants to named rows of a run.

    Args:
        measured: the run; its arrivals must be measured.
        experiment_of: the replay's experiment with some `key=value` on top.
        names: of `CONSTANTS`.
        rows: indices in order of arrival, shape (m,).

    Raises:
        BadInput: the arrivals are not known, or there are too few rows.
    """
    if not measured.paired:
        raise BadInput(f"--fit: {measured.path}: arrivals are not measured; nothing to fit on")
    if len(rows) < 2 * BLOCKS:
        raise BadInput(f"--fit: {len(rows)} rows are too few; at least {2 * BLOCKS}")

    def at(values: Floats) -> Replayed:
        pairs = zip(names, values, strict=True)
        return replay(measured, experiment_of([f"engine.{n}={v:.9f}" for n, v in pairs]))

    values = np.array([CONSTANTS[name].start for name in names])
    found, errors = [], []
    for _ in range(ROUNDS):
        problem = _Linear(measured, at(values), names, values, rows)
        values = problem.solved()
        found.append(values)
        errors.append(problem.jackknifed())
    mean: Floats = np.mean(found[-AVERAGED:], axis=0)
    spread = np.std(found[-AVERAGED:], axis=0, ddof=1) / math.sqrt(AVERAGED)
    error: Floats = np.hypot(np.mean(errors[-AVERAGED:], axis=0), spread)
    nothing = np.zeros(len(names))
    return Fitted(
        values_ms={name: round(float(v), 4) for name, v in zip(names, mean, strict=True)},
        errors_ms={name: round(float(v), 4) for name, v in zip(names, error, strict=True)},
        rows=(int(rows[0]), int(rows[-1])),
        used=len(rows),
        run=measured.name,
        before=_Linear(measured, at(nothing), names, nothing, rows).loss(),
        after=_Linear(measured, at(mean), names, mean, rows).loss(),
        replays=ROUNDS + 2,
    )


class _Linear:
    """Latencies about one replay, linear in the constants."""

    def __init__(
        self,
        measured: Measured,
        made: Replayed,
        names: Sequence[str],
        values: Floats,
        rows: Ints,
    ) -> None:
        counts = counts_of(made, names)
        self.values = values
        self.count = len(rows)
        parts = []
        for metric, noise in NOISE.items():
            sides = made.latency_ms[metric][rows], measured.latency_ms[metric][rows]
            parts.append((*sides, counts[metric][rows], np.full(len(rows), noise)))
        mine, real, slopes, spread = (np.concatenate(of) for of in zip(*parts, strict=True))
        known = ~(np.isnan(mine) | np.isnan(real)) & (mine > 0) & (real > 0)
        self.mine, self.real = np.where(known, mine, 1.0), np.where(known, real, 1.0)
        self.slopes, self.noise = np.where(known[:, None], slopes, 0.0), spread
        self.block = np.tile(np.arange(self.count) * BLOCKS // self.count, len(NOISE))

    def solved(self, kept: NDArray[np.bool_] | None = None) -> Floats:
        """Return the constants with the least loss, each >= 0."""
        chosen = slice(None) if kept is None else kept
        scale = np.maximum(self.values, [CONSTANTS_FLOOR] * len(self.values))

        def residuals(values: Floats) -> Floats:
            return self.residuals(values)[chosen]

        result: Floats = least_squares(
            residuals, np.maximum(self.values, 1e-9), bounds=(0, np.inf), x_scale=scale,
            loss="soft_l1",
        ).x  # fmt: skip
        return result

    def residuals(self, values: Floats) -> Floats:
        """Return log errors in units of noise, shape (metrics * rows,)."""
        mine = self.mine + self.slopes @ (values - self.values)
        found: Floats = np.log(np.maximum(mine, 1e-3 * self.mine) / self.real) / self.noise
        return found

    def loss(self) -> float:
        """Return the mean soft-l1 loss of the replay itself."""
        residuals = self.residuals(self.values)
        return float((2 * (np.sqrt(1 + residuals**2) - 1)).mean())

    def jackknifed(self) -> Floats:
        """Return standard errors: a block of rows left out, solved again."""
        parts = np.array([self.solved(self.block != left_out) for left_out in range(BLOCKS)])
        spread = parts - parts.mean(axis=0)
        errors: Floats = np.sqrt((BLOCKS - 1) / BLOCKS * (spread**2).sum(axis=0))
        return errors


CONSTANTS_FLOOR = 0.01
"""Smallest scale of a constant in the solver, ms."""


def counts_of(made: Replayed, names: Sequence[str]) -> Counts:
    """Return how often each constant is charged within each latency of a replay.

    TTFT and E2E count from the clock's origin; TPOT is per gap. A request outside the engine pays
    the API latency before its first token.
    """
    columns = made.record.requests
    start = columns[made.experiment.engine.clock.since]
    home = np.maximum(columns["decode_instance"], columns["prefill_instance"])
    gaps = np.maximum(columns["emitted_tokens"] - 1, 1)[:, None]
    ttft = np.zeros((len(start), len(names)))
    e2el = np.zeros_like(ttft)
    for instance in range(len(made.setup.instances)):
        mine = home == instance
        clock, charged = _charges(made, instance, names)
        for column in range(len(names)):
            at = [
                np.interp(np.nan_to_num(times[mine]), clock, charged[:, column])
                for times in (start, columns["first_token_s"], columns["finish_s"])
            ]
            ttft[mine, column], e2el[mine, column] = at[1] - at[0], at[2] - at[0]
    tpot = (e2el - ttft) / gaps
    if "api_latency_ms" in names and made.clock == "client":
        column = list(names).index("api_latency_ms")
        ttft[:, column] = e2el[:, column] = 1.0
    return {"ttft": ttft, "tpot": tpot, "e2el": e2el}


def _charges(made: Replayed, instance: int, names: Sequence[str]) -> tuple[Floats, Floats]:
    """Return times, and how often each constant was charged until then; linear between."""
    steps = step_columns(made.record)
    here = steps["instance"] == instance
    start, count = steps["start_s"][here], steps["n_steps"][here].astype(np.float64)
    chunks = steps["prefill_requests"][here]
    of = {
        "host_step_ms": count,
        "host_seq_ms": count * (chunks + steps["decode_requests"][here]),
        "host_prefill_ms": count * (chunks > 0),
    }
    charged = np.stack([of.get(name, np.zeros(len(count))) for name in names], axis=1)
    done = np.cumsum(charged, axis=0)
    clock = np.stack([start, start + steps["duration_s"][here]], axis=1).ravel()
    return clock, np.stack([done - charged, done], axis=1).reshape(-1, len(names))
