"""How far the composed step times are off per step, before anything is fitted.

A request's TPOT is a mean over the steps it decodes in. The replay with the fitted constants has
the right batches; taking the constants' share off its TPOT leaves what the profile alone says of
those batches, and the rest of the measured TPOT is what the profile lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.study.fidelity.fit import counts_of
from sim.study.fidelity.replay import Replayed

ROW_EDGES = (0, 4, 8, 16, 32, 64, 96, 120, 160, 256)


@dataclass(frozen=True)
class Offset:
    """Requests whose steps held a similar number of rows.

    Attributes:
        low: fewest rows a step, of the group.
        high: from here on it is the next group.
        requests: how many.
        rows: mean rows a step.
        prefill_share: share of the steps that hold prompt tokens.
        measured_ms: mean TPOT.
        composed_ms: the profile's, for the same batches.
        fitted_ms: with the constants.
    """

    low: int
    high: int
    requests: int
    rows: float
    prefill_share: float
    measured_ms: float
    composed_ms: float
    fitted_ms: float

    @property
    def missing_ms(self) -> float:
        """What the profile lacks per step."""
        return self.measured_ms - self.composed_ms


def step_offsets(made: Replayed, values_ms: Mapping[str, float]) -> list[Offset]:
    """Return the offsets by rows a step.

    Args:
        made: the replay with the constants.
        values_ms: the constants in it, beyond the profile's.
    """
    names = ("host_step_ms", "host_seq_ms", "host_prefill_ms")
    per_gap = counts_of(made, names)["tpot"]
    share_ms = per_gap @ np.array([values_ms.get(name, 0.0) for name in names])
    mine, real = made.latency_ms["tpot"], made.measured.latency_ms["tpot"]
    known = ~(np.isnan(mine) | np.isnan(real))
    steps = np.maximum(per_gap[:, 0], 1e-9)
    rows = per_gap[:, 1] / steps
    found = []
    for low, high in zip(ROW_EDGES, (*ROW_EDGES[1:], 10**9), strict=True):
        inside = known & (rows >= low) & (rows < high)
        if not inside.any():
            continue
        found.append(
            Offset(
                low,
                high,
                int(inside.sum()),
                float(rows[inside].mean()),
                float((per_gap[inside, 2] / steps[inside]).mean()),
                float(real[inside].mean()),
                float((mine - share_ms)[inside].mean()),
                float(mine[inside].mean()),
            )
        )
    return found
