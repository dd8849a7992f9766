"""How well a profile predicts measured steps, and which points are kept aside to ask that of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrate.samples import Sample
from sim.costs.model import FS_PER_MS, StepCost
from sim.costs.profile import HeldOutError, PhaseError

KINDS = ("prefill", "decode", "mixed")
"""What a step can hold; mixed ones are composed of the terms that the others were fitted on."""

HELD_OUT_EVERY = 5
"""Every fifth point of a kind is held out."""

SPANNING = ("step_tokens", "context_tokens", "quad_tokens", "batch", "kv_tokens", "chunks")
"""The points with the least and the most of these are always fitted: an error at the ends of the
grid would be one of extrapolation, which a run reports by itself."""


def predicted_ms(cost: StepCost, sample: Sample) -> float:
    """Return the price of the step that a sample measured, milliseconds."""
    step = cost.step(
        sample.chunks,
        sample.new_tokens,
        sample.context_tokens,
        sample.quad_tokens,
        sample.batch,
        sample.kv_tokens,
    )
    return step / FS_PER_MS


def evaluate(cost: StepCost, samples: Sequence[Sample]) -> dict[str, PhaseError]:
    """Compare predicted with measured steps (`wall_ms`: a step as the engine sees it).

    Args:
        cost: the profile to judge, `StepCost(profile, model)`.
        samples: measured steps; those without a time (out of memory) are left out.

    Returns:
        Errors by kind of step (prefill, decode, mixed; those that occur) and of `all`.
    """
    measured = [sample for sample in samples if sample.status == "ok"]
    groups = {kind: [s for s in measured if s.kind == kind] for kind in KINDS}
    groups["all"] = measured
    return {kind: _error(cost, group) for kind, group in groups.items() if group}


def held_out_error(errors: dict[str, PhaseError]) -> HeldOutError:
    """Return the entry of a profile file for what `evaluate` found."""
    total = errors["all"]
    return HeldOutError(
        points=total.points,
        mean_abs_frac=total.mean_abs_frac,
        bias_frac=total.bias_frac,
        phases={kind: error for kind, error in errors.items() if kind != "all"},
    )


def split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Split points into those to fit and those held out, by a hash of what they are.

    Within each kind the points are sorted by the hash and every fifth is held out, but for the ends
    of the grid (`SPANNING`). The same points give the same split in any order.
    """
    aside: set[int] = set()
    for kind in KINDS:
        at = [i for i, sample in enumerate(samples) if sample.kind == kind]
        at.sort(key=lambda i: _digest(samples[i]))
        ends = {
            pick(at, key=lambda i: getattr(samples[i], name))
            for name in SPANNING
            for pick in (min, max)
            if at
        }
        inner = [i for i in at if i not in ends]
        aside.update(inner[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY])
    fitted = [sample for i, sample in enumerate(samples) if i not in aside]
    return fitted, [samples[i] for i in sorted(aside)]


def _digest(sample: Sample) -> str:
    return hashlib.sha256(repr(sample.key).encode()).hexdigest()


def _error(cost: StepCost, samples: Sequence[Sample]) -> PhaseError:
    predicted = np.array([predicted_ms(cost, sample) for sample in samples])
    measured = np.array([sample.wall_ms for sample in samples], dtype=float)
    error: NDArray[np.float64] = predicted / measured - 1
    size = np.abs(error)
    return PhaseError(
        points=len(samples),
        median_abs_frac=_rounded(np.median(size)),
        p95_abs_frac=_rounded(np.quantile(size, 0.95)),
        mean_abs_frac=_rounded(np.mean(size)),
        bias_frac=_rounded(np.mean(error)),
    )


def _rounded(share: np.floating) -> float:
    return round(float(share), 6)
