"""What the runs of a point say: one row of the measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from calibrate.points import Point
from calibrate.samples import Sample


class Timing(Protocol):
    """What one run took, milliseconds."""

    @property
    def device_ms(self) -> float:
        """The forward pass, by device events."""

    @property
    def wall_ms(self) -> float:
        """From the call to the tokens on the host."""


def timed(point: Point, runs: Sequence[Timing], fastest_counts: bool) -> Sample:
    """Return the row of a measured point: the fastest of its runs, or the median.

    Fastest: of the whole run, and of the host's part beside the forward pass.
    """
    wall_ms = [run.wall_ms for run in runs]
    if fastest_counts:
        kept_ms = min(wall_ms)
        device_ms = kept_ms - min(run.wall_ms - run.device_ms for run in runs)
    else:
        kept_ms = _median(wall_ms)
        device_ms = _median([run.device_ms for run in runs])
    return replace(
        unmeasured(point, "refused"),
        status="ok",
        runs=len(runs),
        device_ms=device_ms,
        wall_ms=kept_ms,
        fastest_ms=min(wall_ms),
        spread_frac=_spread(wall_ms),
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
