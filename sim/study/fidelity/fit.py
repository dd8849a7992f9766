"""Host and API constants from a measured run: the only figures a run may teach the simulator.

The requests are simulated again and again; what is made small is, over the named rows, the sum of
soft-l1 losses of log(simulated / measured) of TTFT, TPOT and E2E, each in units of what repeated
real runs differ by (`NOISE`). Uncertainty: jackknife over ten blocks of consecutive rows, on the
problem linearised at the solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from sim.study.config import Experiment
from sim.study.fidelity.measured import Floats, Ints, Measured
from sim.study.fidelity.replay import Replayed, replay
from sim.types import BadInput

NOISE = {"ttft": 0.055, "tpot": 0.0225, "e2el": 0.0165}
"""Spread of repeated real runs, fractions (spec: costs.md section 6, middle of each range)."""

BLOCKS = 10
"""Of the jackknife."""

MOST_ROUNDS = 12


@dataclass(frozen=True)
class Constant:
    """A constant that may be fitted.

    Attributes:
        about: what it is.
        start: first guess, ms: the middle of what costs.md section 1 reports.
        step: for differences, ms: large against what a step's rounding moves.
    """

    about: str
    start: float
    step: float


CONSTANTS = {
    "host_step_ms": Constant("host time of every step", 1.0, 0.2),
    "host_seq_ms": Constant("host time per row of a step", 0.02, 0.02),
    "host_prefill_ms": Constant("more for a step that holds prompt tokens", 4.0, 1.0),
    "api_latency_ms": Constant("outside the engine, of every request", 10.0, 2.0),
}
"""Key of `engine` -> what may be learnt from a run. Nothing else may."""


@dataclass(frozen=True)
class Fitted:
    """What came of a fit.

    Attributes:
        values_ms: constant -> value.
        errors_ms: constant -> standard error.
        rows: first and last row used, from 0, in order of arrival.
        used: how many.
        run: the run they are of.
        before: loss at the values that the settings had.
        after: loss at the solution.
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
    measured: Measured,
    experiment_of: Callable[[Sequence[str]], Experiment],
    names: Sequence[str],
    rows: Ints,
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
    problem = _Problem(measured, experiment_of, names, rows)
    before = problem.loss(problem.residuals_of(replay(measured, experiment_of(()))))
    found = min((problem.solve(start) for start in (1.0, 0.2)), key=lambda at: problem.at(at)[0])
    after, residuals = problem.at(found)
    errors = _jackknife(problem.jacobian(found), residuals, len(rows))
    values_ms = found * problem.scale
    errors_ms = errors * problem.scale
    return Fitted(
        values_ms={name: round(float(v), 4) for name, v in zip(names, values_ms, strict=True)},
        errors_ms={name: round(float(v), 4) for name, v in zip(names, errors_ms, strict=True)},
        rows=(int(rows[0]), int(rows[-1])),
        used=len(rows),
        run=measured.name,
        before=before,
        after=after,
        replays=problem.replays,
    )


class _Problem:
    """Residuals over constants, in units of their first guesses."""

    def __init__(
        self,
        measured: Measured,
        experiment_of: Callable[[Sequence[str]], Experiment],
        names: Sequence[str],
        rows: Ints,
    ) -> None:
        self.measured, self.experiment_of = measured, experiment_of
        self.names, self.rows = names, rows
        self.scale = np.array([CONSTANTS[name].start for name in names])
        self.steps = np.array([CONSTANTS[name].step for name in names]) / self.scale
        self.replays = 0
        self._known: dict[bytes, Floats] = {}

    def residuals(self, at: Floats) -> Floats:
        key = np.round(at, 9).tobytes()
        if key not in self._known:
            self.replays += 1
            pairs = zip(self.names, at * self.scale, strict=True)
            overrides = [f"engine.{name}={value:.9f}" for name, value in pairs]
            made = replay(self.measured, self.experiment_of(overrides))
            self._known[key] = self.residuals_of(made)
        return self._known[key]

    def residuals_of(self, made: Replayed) -> Floats:
        """Return log errors in units of noise, shape (3 * rows,); 0 where there is none."""
        found = []
        for metric, noise in NOISE.items():
            mine = made.latency_ms[metric][self.rows]
            real = self.measured.latency_ms[metric][self.rows]
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(np.nan_to_num(np.log(mine / real) / noise, posinf=0.0, neginf=0.0))
        return np.concatenate(found)

    def jacobian(self, at: Floats) -> Floats:
        """Return differences forward, by steps large enough to drown rounding."""
        base = self.residuals(at)
        columns = []
        for index, step in enumerate(self.steps):
            moved = at.copy()
            moved[index] += step
            columns.append((self.residuals(moved) - base) / step)
        return np.stack(columns, axis=1)

    def solve(self, start: float) -> Floats:
        found: Floats = least_squares(
            self.residuals,
            np.full(len(self.names), start),
            self.jacobian,
            bounds=(0.0, np.inf),
            loss="soft_l1",
            max_nfev=MOST_ROUNDS,
            xtol=1e-4,
            ftol=1e-5,
        ).x
        return found

    def at(self, point: Floats) -> tuple[float, Floats]:
        residuals = self.residuals(point)
        return self.loss(residuals), residuals

    @staticmethod
    def loss(residuals: Floats) -> float:
        """Return the soft-l1 loss a residual."""
        return float((2 * (np.sqrt(1 + residuals**2) - 1)).mean())


def _jackknife(jacobian: Floats, residuals: Floats, rows: int) -> Floats:
    """Return standard errors: a block of rows left out, the linear problem solved again."""
    weight = (1 + residuals**2) ** -0.25  # of soft l1
    a, b = jacobian * weight[:, None], residuals * weight
    block = np.tile(np.arange(rows) * BLOCKS // rows, len(NOISE))
    shifts = []
    for left_out in range(BLOCKS):
        kept = block != left_out
        shifts.append(-np.linalg.lstsq(a[kept], b[kept], rcond=None)[0])
    spread = np.array(shifts)
    spread -= spread.mean(axis=0)
    errors: Floats = math.sqrt((BLOCKS - 1) / BLOCKS) * np.sqrt((spread**2).sum(axis=0))
    return errors
