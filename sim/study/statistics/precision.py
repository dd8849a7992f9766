"""How many replications it takes until figures are known as well as was asked for.

Replications are added in rounds whose sizes depend on the figures alone, never on the number of
processes. Intervals that stop when they happen to be narrow cover less than 95 %, some 91 % here
(tests/theory/test_coverage.py); with fewer than ten replications before the first look it is less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.study.validation import unknown_key
from sim.types import BadInput

Summary = Mapping[str, Any]

DEFAULT_OF = ("mean_ttft_ms", "mean_tpot_ms")
DEFAULT_CAP = 100
LEAST = 10
"""Replications before the first look."""
GROWTH = 2
"""A round makes the replications so many times as many, at most."""


@dataclass(frozen=True)
class Precision:
    """When there are replications enough.

    Attributes:
        target: relative half-width of the 95 % intervals: 0.02 is 2 %.
        of: keys of the summary; () means `DEFAULT_OF`, as far as they are defined.
        cap: replications, at most.
    """

    target: float
    of: tuple[str, ...] = ()
    cap: int = DEFAULT_CAP

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise BadInput(f"--precision: {self.target:g}; valid: above 0, below 1 (100%)")
        if self.cap < LEAST:
            raise BadInput(f"--max-replications: {self.cap}; valid: {LEAST} or more")

    def widths(self, summary: Summary) -> dict[str, float]:
        """Return each figure's relative half-width; infinite where a named one is undefined."""
        found = {}
        for key in self.of or DEFAULT_OF:
            mean, half = summary[key], (summary[f"{key}_ci_high"] - summary[f"{key}_ci_low"]) / 2
            if math.isfinite(mean):
                found[key] = half / abs(mean) if mean else (math.inf if half else 0.0)
            elif self.of:
                found[key] = math.inf
        return found

    def wanted(self, summaries: Sequence[Summary], least: int) -> int:
        """Return how many replications to have next; as many as there are: enough, or the cap.

        Args:
            summaries: of each policy, all of the same number of replications.
            least: replications to have in any case; ten at least.

        Raises:
            BadInput: a named figure is not one of the summary's.
        """
        self._check(summaries[0])
        replications: int = summaries[0]["n_replications"]
        if replications < (first := min(max(least, LEAST), self.cap)):
            return first
        widest = max((w for s in summaries for w in self.widths(s).values()), default=0.0)
        if widest <= self.target:
            return replications
        factor = min((widest / self.target) ** 2, GROWTH)
        return min(math.ceil(replications * factor), self.cap)

    def _check(self, summary: Summary) -> None:
        valid = [key for key in summary if f"{key}_ci_low" in summary]
        for key in self.of:
            if key not in valid:
                raise BadInput(f"--of: {unknown_key(key, valid)}")

    def notes(self, summary: Summary, replications: int) -> tuple[str, ...]:
        """Return what to say of figures that have not got so precise."""
        wide = {key: w for key, w in self.widths(summary).items() if w > self.target}
        if not wide:
            return ()
        said = ", ".join(
            f"{key} ± {w * 100:.3g} %" if math.isfinite(w) else f"{key} is undefined or 0"
            for key, w in wide.items()
        )
        return (
            f"precision {self.target * 100:g} % not reached with {replications} replications, the "
            f"most allowed: {said}; ask for longer runs or raise --max-replications",
        )


def parse_precision(text: str, of: str | None, cap: int) -> Precision:
    """Return what `--precision 2% --of a,b --max-replications N` asks for.

    Raises:
        BadInput: not a share, or out of bounds.
    """
    number, factor = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        target = float(number) * factor
    except ValueError:
        raise BadInput(f"--precision: {text!r}; valid: a share such as 2% or 0.02") from None
    names = [name.strip() for name in (of or "").split(",")]
    return Precision(target, tuple(dict.fromkeys(name for name in names if name)), cap)
