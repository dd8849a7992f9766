"""Failures at times that a test names, and a limit on those that are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from sim.core.outages import Outages

Plan = Sequence[Sequence[tuple[int, int]]]


class PlannedOutages(Outages):
    """Failures as listed: for each engine (down, up) in femtoseconds, in order."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def of(self, engine: int) -> Iterator[tuple[int, int]]:
        """Yield the engine's list; engines that have none never fail."""
        return iter(self.plan[engine] if engine < len(self.plan) else ())

    def doubled(self) -> PlannedOutages:
        """Return the plan with every time doubled."""
        return PlannedOutages([[(2 * at, 2 * up) for at, up in one] for one in self.plan])


class FirstOutages(Outages):
    """The first failures of others: batches that take longer than instances live must end."""

    def __init__(self, inner: Outages, count: int) -> None:
        self.inner = inner
        self.count = count

    def of(self, engine: int) -> Iterator[tuple[int, int]]:
        """Yield the first of an engine."""
        return islice(self.inner.of(engine), self.count)
