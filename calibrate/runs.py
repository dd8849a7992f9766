"""What the runs of a point say: one row of the measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from calibrate.points import Point
from calibrate.samples import Sample
from calibrate.speed import usual_ms


class Timing(Protocol):
    """What one run took, milliseconds."""

    @property
    def device_ms(self) -> float:
        """The forward pass, by device events."""

    @property
    def wall_ms(self) -> float:
        """From the call to the tokens on the host."""


def timed(point: Point, runs: Sequence[Timing]) -> Sample:
    """Return the row of a point that was run so often: medians."""
    wall_ms = [run.wall_ms for run in runs]
    device_ms = _median([run.device_ms for run in runs])
    return _row(point, wall_ms, _median(wall_ms), device_ms)


def timed_by_visits(visits: Sequence[tuple[Point, Sequence[Timing]]]) -> dict[Point, Sample]:
    """Return the rows of points that were visited in turns, in order of their first visit.

    Args:
        visits: point and runs of each visit, in order of time; the fastest run of each counts.

    Returns:
        By point: what it takes at the speed the machine mostly had (`calibrate.speed`), and of that
        on the device what it mostly was; the spread is that of the visits beyond it.
    """
    points = list(dict.fromkeys(point for point, _ in visits))
    number = {point: at for at, point in enumerate(points)}
    of = [number[point] for point, _ in visits]
    own_ms, slow = usual_ms(of, [min(run.wall_ms for run in runs) for _, runs in visits])
    wall_ms: list[list[float]] = [[] for _ in points]
    shares: list[list[float]] = [[] for _ in points]
    for at, factor, (_, runs) in zip(of, slow.tolist(), visits, strict=True):
        wall_ms[at] += [run.wall_ms / factor for run in runs]
        shares[at] += [run.device_ms / run.wall_ms for run in runs]
    return {
        point: _row(point, wall_ms[at], own_ms[at], own_ms[at] * _median(shares[at]))
        for at, point in enumerate(points)
    }


def _row(point: Point, runs_ms: Sequence[float], wall_ms: float, device_ms: float) -> Sample:
    return replace(
        unmeasured(point, "refused"),
        status="ok",
        runs=len(runs_ms),
        device_ms=float(device_ms),
        wall_ms=float(wall_ms),
        fastest_ms=min(runs_ms),
        spread_frac=_spread(runs_ms),
    )


def unmeasured(point: Point, status: str) -> Sample:
    """Return the row of a point without times."""
    return Sample(
        phase=point.phase,
        padded=point.padded,
        lengths=point.lengths,
        chunks=len(point.chunks),
        new_tokens=point.new_tokens,
        context_tokens=point.context_tokens,
        quad_tokens=point.quad_tokens,
        batch=point.batch,
        kv_tokens=point.kv_tokens,
        step_tokens=point.step_tokens,
        status=status,
    )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _spread(values: Sequence[float]) -> float:
    """Return (p90 - p10) / median."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return float((high - low) / middle)
