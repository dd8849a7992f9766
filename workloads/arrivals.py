"""Arrival processes.

Each maps the same kind of random input, the points of a process of rate 1, to arrival times. For
the processes of constant rate r the gaps are the unit gaps divided by r; the others stretch unit
points by their cumulative rate. So one seed gives one pattern at every rate.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Discriminator, model_validator

from workloads.base import Config, Field, Floats, bad

MAX_REQUESTS = 100_000_000
"""More than this in one run is a mistake in `rate` or `duration_s`."""


class Process(Config):
    """Base of the processes with a rate."""

    rate: float = Field(gt=0, description="mean arrivals [requests/s]")

    def unit_gaps(self, rng: np.random.Generator, n: int) -> Floats:
        """Return `n` gaps of mean 1."""
        return rng.standard_exponential(n)

    def times(self, points: Floats) -> Floats:
        """Return the arrival times [s] of the points of the unit process."""
        return points / self.rate

    def expected(self, duration_s: float) -> float:
        """Return the mean number of arrivals before `duration_s`."""
        return self.rate * duration_s


class Poisson(Process):
    """Exponential gaps."""

    process: Literal["poisson"]


class Gamma(Process):
    """Gamma-distributed gaps: cv > 1 is burstier than Poisson, cv < 1 smoother."""

    process: Literal["gamma"]
    cv: float = Field(gt=0, le=100, description="coefficient of variation of the gaps")

    def unit_gaps(self, rng: np.random.Generator, n: int) -> Floats:
        """Return `n` gaps of mean 1."""
        return rng.standard_gamma(self.cv**-2, n) * self.cv**2


class Constant(Process):
    """Equal gaps."""

    process: Literal["constant"]

    def unit_gaps(self, rng: np.random.Generator, n: int) -> Floats:
        """Return `n` gaps of 1."""
        return np.ones(n)


class Burst(Process):
    """Poisson arrivals whose rate is higher for a while at the start of every period.

    `rate` is the mean over a period.
    """

    process: Literal["burst"]
    period_s: float = Field(gt=0, description="from one burst to the next [s]")
    burst_s: float = Field(gt=0, description="length of a burst, below period_s [s]")
    factor: float = Field(10.0, gt=1, description="rate in a burst / rate outside")

    @model_validator(mode="after")
    def _fits(self) -> Burst:
        if self.burst_s >= self.period_s:
            raise ValueError(f"burst_s = {self.burst_s} is not below period_s = {self.period_s}")
        return self

    def times(self, points: Floats) -> Floats:
        """Return the arrival times [s] of the points of the unit process."""
        per_period = self.rate * self.period_s
        share = self.burst_s * self.factor
        in_burst = per_period * share / (share + self.period_s - self.burst_s)
        periods, rest = np.divmod(points, per_period)
        offset = np.interp(rest, [0, in_burst, per_period], [0, self.burst_s, self.period_s])
        return periods * self.period_s + offset


class Diurnal(Process):
    """Poisson arrivals at rate * (1 - amplitude * cos(2 pi t / period)): it starts at the low."""

    process: Literal["diurnal"]
    amplitude: float = Field(0.5, ge=0, lt=1, description="swing of the rate / mean rate")
    period_s: float = Field(86_400.0, gt=0, description="length of a cycle [s]")

    def times(self, points: Floats) -> Floats:
        """Return the arrival times [s] of the points of the unit process."""
        cycles, rest = np.divmod(points / (self.rate * self.period_s), 1.0)
        # Kepler's equation: x - a sin x = 2 pi rest. A grid brackets x, Newton refines it.
        grid = np.linspace(0, 2 * np.pi, 4097)
        mean = 2 * np.pi * rest
        values = grid - self.amplitude * np.sin(grid)
        cell = np.clip(np.searchsorted(values, mean, side="right") - 1, 0, len(grid) - 2)
        low, high = grid[cell], grid[cell + 1]
        x = np.interp(mean, values, grid)
        for _ in range(4):
            step = (x - self.amplitude * np.sin(x) - mean) / (1 - self.amplitude * np.cos(x))
            x = np.clip(x - step, low, high)
        return (cycles + x / (2 * np.pi)) * self.period_s


class Ramp(Process):
    """Poisson arrivals whose rate goes from `rate` to `end_rate` in a line, then stays."""

    process: Literal["ramp"]
    end_rate: float = Field(gt=0, description="arrivals after the ramp [requests/s]")
    ramp_s: float = Field(gt=0, description="length of the ramp [s]")

    def times(self, points: Floats) -> Floats:
        """Return the arrival times [s] of the points of the unit process."""
        slope = (self.end_rate - self.rate) / self.ramp_s
        on_ramp = self.expected(self.ramp_s)
        inside = np.minimum(points, on_ramp)
        root = np.sqrt(np.maximum(self.rate**2 + 2 * slope * inside, 0.0))
        after = np.maximum(points - on_ramp, 0.0) / self.end_rate
        return 2 * inside / (self.rate + root) + after

    def expected(self, duration_s: float) -> float:
        """Return the mean number of arrivals before `duration_s`."""
        t = min(duration_s, self.ramp_s)
        slope = (self.end_rate - self.rate) / self.ramp_s
        return self.rate * t + slope * t * t / 2 + self.end_rate * (duration_s - t)


class TraceTimes(Config):
    """The arrival times of the trace file, as they are or stretched."""

    process: Literal["trace"]
    time_scale: float = Field(1.0, gt=0, description="factor on the times; 2 halves the rate")
    rate: float | None = Field(None, gt=0, description="stretch to this mean rate [requests/s]")

    @model_validator(mode="after")
    def _one(self) -> TraceTimes:
        if self.rate is not None and self.time_scale != 1:
            raise ValueError("give time_scale or rate, not both")
        return self


class AllAtOnce(Config):
    """Every request waits at t = 0."""

    process: Literal["all-at-once"]


class Closed(Config):
    """A fixed number of clients, each sending its next request some time after its last answer."""

    process: Literal["closed"]
    concurrency: int = Field(ge=1, description="clients")
    think_s: float = Field(0.0, ge=0, description="from an answer to the client's next request [s]")


Rated = Poisson | Gamma | Constant | Burst | Diurnal | Ramp
Arrivals = Annotated[Rated | TraceTimes | AllAtOnce | Closed, Discriminator("process")]


def new_arrivals(
    process: Arrivals | None, n: int | None, duration_s: float | None, rng: np.random.Generator
) -> tuple[Floats | None, int]:
    """Return arrival times [s] and their number.

    Args:
        process: any but `TraceTimes`.
        n: number of arrivals, or None to take those before `duration_s`.
        duration_s: end of the arrivals [s].
        rng: draws the gaps.

    Returns:
        The times, None if the engine (closed) or nobody (no process) sets them; and the number.
    """
    if isinstance(process, Process) and n is None and duration_s is not None:
        times = _before(process, duration_s, rng)
        if not len(times):
            raise bad("workload.duration_s", f"no arrival before {duration_s:g} s")
        return times, len(times)
    if n is None:
        raise bad("workload.num_requests", "needed: this source and these arrivals never end")
    if isinstance(process, Process):
        return process.times(np.cumsum(process.unit_gaps(rng, n))), n
    return (np.zeros(n) if isinstance(process, AllAtOnce) else None), n


def _before(process: Process, duration_s: float, rng: np.random.Generator) -> Floats:
    expected = process.expected(duration_s)
    if expected > MAX_REQUESTS:
        raise bad("workload.duration_s", f"{expected:.3g} requests; at most {MAX_REQUESTS}")
    more = int(expected + 6 * expected**0.5) + 16
    gaps = process.unit_gaps(rng, more)
    times = process.times(np.cumsum(gaps))
    while times[-1] < duration_s:
        gaps = np.concatenate([gaps, process.unit_gaps(rng, more)])
        times = process.times(np.cumsum(gaps))
    return times[: np.searchsorted(times, duration_s)]
