"""What padding costs: the same batch of short and long prompts on both paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrate.samples import Sample
from calibrate.score import predicted_ms
from sim.costs.model import StepCost


@dataclass(frozen=True)
class PaddingCost:
    """Padded over padding-free time of one batch of prompts.

    Attributes:
        lengths: the prompts, as in `Sample`.
        waste: share of the padded tokens that is padding.
        measured: ratio of the measured times.
        modelled: ratio of the two profiles' times.
        by_tokens: ratio when the padding-free profile prices both, the padded batch as a rectangle:
            what the simulator does with one profile.
    """

    lengths: str
    waste: float
    measured: float
    modelled: float
    by_tokens: float


def padding_costs(samples: Sequence[Sample], costs: Mapping[bool, StepCost]) -> list[PaddingCost]:
    """Return the batches of unequal prompts that were measured on both paths.

    Args:
        samples: of both paths.
        costs: the fitted profiles, padding-free (False) and padded (True).
    """
    paths: dict[bool, dict[str, Sample]] = {False: {}, True: {}}
    for sample in samples:
        if sample.kind == "prefill" and sample.status == "ok" and "+" in sample.lengths:
            paths[sample.padded][sample.lengths] = sample
    found = []
    for lengths, ragged in paths[False].items():
        padded = paths[True].get(lengths)
        if padded is None or not padded.wall_ms or not ragged.wall_ms:
            continue
        ragged_ms = predicted_ms(costs[False], ragged)
        found.append(
            PaddingCost(
                lengths,
                1 - ragged.new_tokens / padded.new_tokens,
                padded.wall_ms / ragged.wall_ms,
                predicted_ms(costs[True], padded) / ragged_ms,
                predicted_ms(costs[False], padded) / ragged_ms,
            )
        )
    return sorted(found, key=lambda cost: cost.waste)


def padding_lines(found: Sequence[PaddingCost]) -> list[str]:
    """Return the costs as text."""
    if not found:
        return []
    width = max(len(cost.lengths) for cost in found)
    head = f"{'prompts':<{width}}  padding  measured  two profiles  padding-free profile"
    return [
        "the same batch, time padded / padding-free:",
        head,
        *(
            f"{cost.lengths:<{width}}{cost.waste:>9.0%}{cost.measured:>10.2f}"
            f"{cost.modelled:>14.2f}{cost.by_tokens:>22.2f}"
            for cost in found
        ),
    ]
