"""The event loop: SimPy with an integer clock and an explicit order of coinciding events."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

import simpy

from sim.types import N

# Order of events at one instant (smaller first). SimPy itself stops a run with priority 0.
FAILURE = 1
ARRIVAL = 2
ABORT = 3
TRANSFER = 4
MONITOR = 5
INSTANCE = 10
"""Step ends and plans come last, instance by instance: priority INSTANCE + index."""


class Timer(simpy.Event):
    """A SimPy event that can be scheduled again and again, at absolute times.

    One object serves an instance for the whole run: creating an event for each step would cost as
    much as firing it. A timer may stand in the event list several times; its callback tells a
    superseded firing by the time it expects, and first of all sets `callbacks` to `armed` again.
    """

    def __init__(
        self, env: simpy.Environment, callback: Callable[[Timer], None], priority: int
    ) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.priority = priority
        self.armed: list[Any] = [callback]
        """SimPy takes `callbacks` when it fires; putting this back makes the timer usable again."""
        self.callbacks = self.armed
        # `Environment.schedule` takes a delay and adds the clock again; with one timer a step the
        # detour is 2 % of a run. tests/unit/test_core_loop.py guards the private names.
        self.events: list[Any] = env._queue
        self.serial = env._eid

    def at(self, time_fs: int) -> None:
        """Schedule the timer at absolute time `time_fs` (not before now)."""
        heappush(self.events, (time_fs, self.priority, next(self.serial), self))


def new_environment() -> simpy.Environment:
    """Return an environment whose clock counts integer femtoseconds from 0."""
    return simpy.Environment(initial_time=0)


def steps_to_cover(elapsed: int, first: int, increment: int) -> N:
    """Smallest m >= 1 whose m steps last at least `elapsed`.

    Step k (from 0) lasts first + k*increment, so m steps last m*first + increment*m*(m-1)/2. A
    float root is only the guess; integers decide.
    """
    m = -(-elapsed // first)
    if m <= 1:
        return 1
    if increment > 0 and m > 4:
        b = first - increment / 2
        m = int(2 * elapsed / (b + (b * b + 2.0 * increment * elapsed) ** 0.5)) + 1
    while m * first + increment * (m * (m - 1) // 2) < elapsed:
        m += 1
    while m > 1 and (m - 1) * first + increment * ((m - 1) * (m - 2) // 2) >= elapsed:
        m -= 1
    return m
