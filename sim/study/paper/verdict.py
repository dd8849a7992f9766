"""The rule for the verdict on a claim of the paper: pure code on intervals.

It was written and committed before the first results existed. It knows no policy, no figure and no
result; everything it looks at is in its arguments.

**The claim.** A quantity (a ratio of two systems, a share, a rate) with the paper's `value`, or a
`bound` on one `side` of which the paper puts it, or both. The claimed side of a ratio is above 1
(below 1 when the paper's ratio is), of "less than 1 % of the time" below 0.01.

**Ours.** A mean with its 95 % interval [low, high], under the paper set and under each *setting*:
the paper set with one assumption changed (one at a time), or a point of a Latin hypercube over all
of them (`JOINT`). Every interval is looked at in the same way:

* *tolerance*: the larger of 10 % of the value (of the bound, where there is no value) and the
  reading error of the value. *Precise*: half the width of our interval is at most the tolerance.
* *closeness*: `far` when the interval does not touch value ± tolerance; `near` when it touches it
  and is precise; `open` when it touches it only because it is wide, or when ours is undefined.
* *direction*: `holds` when the whole interval lies on the claimed side, without touching the
  bound; `fails` when no part of it does, or when it contains the bound, is far from the value and
  precise (no gain to speak of); else `open`. Without a bound the value is all that can hold: near
  holds, far fails. Without a value there is nothing to be near to: what holds counts as near.

**The verdict under the paper set alone**

* *reproduced*: the direction holds and ours is near.
* *direction only*: the direction holds and ours is far, on whichever side of the value.
* *not reproduced*: the direction fails.
* *undecidable*: one of the two is open; more seeds would tell.

**The verdict over assumptions.** What the paper leaves open may not decide the answer. A verdict
stands only where it is *likely*: at least two thirds of the settings have the same direction as the
paper set ("likely" of the IPCC's scale, 66-100 %). Else the range contains both sides and the claim
is *undecidable*. The settings counted are the joint ones, a sample of the whole space; the
one-at-a-time ones only where there are no joint ones. One that is open agrees with nobody. How many
are near the value is in the reason and changes nothing: a constant that only some settings give
stays "reproduced" under the paper set, with that count beside it.

**The decisive assumption** is sought among the one-at-a-time settings. Those whose direction is
decided and is not the paper set's cross the bound. The decisive assumption is the one most of whose
values cross, then the one that moves ours farthest in doing so, then the first. When none crosses
the bound, the same with near and far: what leaves or reaches the value. When none does that either,
it is the assumption that moves ours farthest, and it crosses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

Name = Literal["reproduced", "direction only", "not reproduced", "undecidable"]
Closeness = Literal["near", "far", "open"]
Direction = Literal["holds", "fails", "open"]
Side = Literal["above", "below"]
Crosses = Literal["bound", "value", "nothing"]

NEAR = 0.10
"""Share of the paper's value within which ours is near it."""
LIKELY = Fraction(2, 3)
"""Share of settings that must agree with the paper set for its verdict to stand."""
JOINT = "latin hypercube"
"""The assumption of a setting in which all of them are drawn together."""


class Estimate(Protocol):
    """Ours: a mean with its 95 % interval; NaN where it is undefined."""

    @property
    def mean(self) -> float:
        """Over replications."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""


@dataclass(frozen=True)
class Setting:
    """Ours under other assumptions than those of the paper set.

    Attributes:
        assumption: the one that is changed, or `JOINT`.
        value: what it is changed to; the number of the point where all are drawn.
        mean: ours.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    assumption: str
    value: object
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Claimed:
    """What the paper says of a quantity.

    Attributes:
        value: the paper's; None where it gives only a bound.
        bound: what the quantity lies above or below; None where the paper gives only a value.
        side: of the bound; None without one.
        reading_error: how far the value may be off because it was read from a plot.
    """

    value: float | None
    bound: float | None = None
    side: Side | None = None
    reading_error: float = 0.0

    def __post_init__(self) -> None:
        if self.value is None and self.bound is None:
            raise ValueError("a claim has a value, a bound or both")
        if (self.bound is None) != (self.side is None):
            raise ValueError("a bound has a side: above or below")
        if not 0 <= self.reading_error < math.inf:
            raise ValueError(f"reading error {self.reading_error}; valid: 0 or more")
        if self.value is not None and not self._claimed_side(self.value, self.value):
            raise ValueError(f"the value {self.value:g} is not {self.side} {self.bound:g}")

    @property
    def tolerance(self) -> float:
        """How far from the paper's value ours is still near it."""
        value = self.bound if self.value is None else self.value
        assert value is not None  # __post_init__
        return max(NEAR * abs(value), self.reading_error)

    def closeness(self, ours: Estimate) -> Closeness:
        """Return whether ours is near the paper's value."""
        if _undefined(ours):
            return "open"
        if self.value is None:
            return "near" if self._claimed_side(ours.low, ours.high) else "open"
        low, high = self.value - self.tolerance, self.value + self.tolerance
        if ours.high < low or ours.low > high:
            return "far"
        return "near" if self._is_precise(ours) else "open"

    def direction(self, ours: Estimate) -> Direction:
        """Return whether ours lies where the paper puts the quantity."""
        closeness = self.closeness(ours)
        if _undefined(ours):
            return "open"
        if self.bound is None:
            return "holds" if closeness == "near" else "fails" if closeness == "far" else "open"
        if self._claimed_side(ours.low, ours.high):
            return "holds"
        beyond = ours.high <= self.bound if self.side == "above" else ours.low >= self.bound
        no_gain = closeness == "far" and self._is_precise(ours)
        return "fails" if beyond or no_gain else "open"

    def _claimed_side(self, low: float, high: float) -> bool:
        if self.bound is None:
            return True
        return low > self.bound if self.side == "above" else high < self.bound

    def _is_precise(self, ours: Estimate) -> bool:
        return ours.high - ours.low <= 2 * self.tolerance

    def __str__(self) -> str:
        """Return the claim as the reason of a verdict quotes it."""
        value = "" if self.value is None else f"{self.value:.4g} ±{self.tolerance:.2g}"
        bound = "" if self.bound is None else f"{self.side} {self.bound:.4g}"
        return ", ".join(filter(None, [value, bound]))


@dataclass(frozen=True)
class Decisive:
    """The assumption on which the verdict hangs.

    Attributes:
        assumption: its name.
        value: the one that moves ours farthest (of those that cross, if any does).
        mean: ours under that value.
        crosses: the claim's bound, its value (near to far or back), or nothing.
        share: of the assumption's values that cross.
    """

    assumption: str
    value: object
    mean: float
    crosses: Crosses
    share: float

    def __str__(self) -> str:
        """Return the end of a reason."""
        what = {"bound": "across the bound", "value": "into or out of reach of the value"}
        crossed = what.get(self.crosses, "farthest, across nothing")
        return f"{self.assumption} = {self.value} moves ours to {self.mean:.3g}, {crossed}"


@dataclass(frozen=True)
class Verdict:
    """A verdict with what it rests on.

    Attributes:
        name: reproduced, direction only, not reproduced or undecidable.
        reason: one sentence.
        decisive: None where no assumption was changed alone.
        agree: settings counted whose direction is that of the paper set.
        against: those with the opposite direction.
        unclear: those whose direction is open.
        near: those near the paper's value.
        lowest: smallest mean over all settings and the paper set.
        highest: largest one.
    """

    name: Name
    reason: str
    decisive: Decisive | None
    agree: int
    against: int
    unclear: int
    near: int
    lowest: float
    highest: float


def judge(claimed: Claimed, ours: Estimate, settings: Sequence[Setting]) -> Verdict:
    """Return the verdict on a claim.

    Args:
        claimed: by the paper.
        ours: under the paper set.
        settings: ours under other assumptions: one at a time, and joint ones.

    Raises:
        ValueError: an interval ends before it begins.
    """
    for one in (ours, *settings):
        if one.low > one.high:
            raise ValueError(f"the interval [{one.low:g}, {one.high:g}] ends before it begins")
    counted = [s for s in settings if s.assumption == JOINT] or list(settings)
    stance = claimed.direction(ours)
    directions = [claimed.direction(s) for s in counted]
    agree = 0 if stance == "open" else directions.count(stance)
    unclear = directions.count("open")
    near = sum(claimed.closeness(s) == "near" for s in counted)
    alone = _alone(claimed, ours)
    likely = agree >= LIKELY * len(counted)
    name: Name = alone if likely else "undecidable"
    decisive = _decisive(claimed, ours, [s for s in settings if s.assumption != JOINT])
    against = 0 if stance == "open" else len(counted) - agree - unclear
    means = [one.mean for one in (ours, *settings) if not math.isnan(one.mean)] or [math.nan]
    parts = [_quoted(claimed, ours, alone), _counts(len(counted), agree, unclear, near, stance)]
    if decisive is not None:
        parts.append(str(decisive))
    reason = "; ".join(parts)
    return Verdict(name, reason, decisive, agree, against, unclear, near, min(means), max(means))


def _alone(claimed: Claimed, ours: Estimate) -> Name:
    """Return the verdict under the paper set alone."""
    direction, closeness = claimed.direction(ours), claimed.closeness(ours)
    if direction == "fails":
        return "not reproduced"
    if direction == "open" or closeness == "open":
        return "undecidable"
    return "reproduced" if closeness == "near" else "direction only"


def _decisive(claimed: Claimed, ours: Estimate, singles: Sequence[Setting]) -> Decisive | None:
    """Return the assumption that moves ours across the claim, or moves it most."""
    groups: dict[str, list[Setting]] = {}
    for setting in singles:
        if not math.isnan(setting.mean):
            groups.setdefault(setting.assumption, []).append(setting)
    looks: list[tuple[Crosses, Callable[[Estimate], str]]] = [
        ("bound", claimed.direction),
        ("value", claimed.closeness),
    ]
    for crosses, look in looks:
        found = list(_crossings(groups, ours, look, crosses))
        if found:
            return max(found, key=lambda one: (one.share, _move(one, ours)))
    known = [one for group in groups.values() for one in group]
    if not known:
        return None
    one = max(known, key=lambda one: _move(one, ours))
    return Decisive(one.assumption, one.value, one.mean, "nothing", 0.0)


def _crossings(
    groups: dict[str, list[Setting]],
    ours: Estimate,
    look: Callable[[Estimate], str],
    crosses: Crosses,
) -> Iterator[Decisive]:
    """Yield the assumptions some of whose values look otherwise than the paper set."""
    here = look(ours)
    if here == "open":
        return
    for name, group in groups.items():
        over = [one for one in group if look(one) not in (here, "open")]
        if over:
            one = max(over, key=lambda one: _move(one, ours))
            yield Decisive(name, one.value, one.mean, crosses, len(over) / len(group))


def _move(one: Setting | Decisive, ours: Estimate) -> float:
    move = abs(one.mean - ours.mean)
    return 0.0 if math.isnan(move) else move


def _quoted(claimed: Claimed, ours: Estimate, alone: Name) -> str:
    if math.isnan(ours.mean):
        return f"ours is undefined under the paper set against the paper's {claimed}"
    why = {
        "reproduced": "agrees with",
        "direction only": "lies on the claimed side but not near",
        "not reproduced": "does not show",
        "undecidable": "leaves open",
    }[alone]
    interval = f"{ours.mean:.3g} [{ours.low:.3g}, {ours.high:.3g}]"
    return f"ours {interval} under the paper set {why} the paper's {claimed}"


def _counts(n: int, agree: int, unclear: int, near: int, stance: Direction) -> str:
    if not n:
        return "no assumption was changed"
    if stance == "open":
        return f"{near} of {n} settings are near"
    few = "" if agree >= LIKELY * n else ", fewer than two thirds"
    return (
        f"{agree} of {n} settings agree{few}, {n - agree - unclear} say the opposite, "
        f"{unclear} are unclear, {near} are near"
    )


def _undefined(ours: Estimate) -> bool:
    return math.isnan(ours.mean) or math.isnan(ours.low) or math.isnan(ours.high)
