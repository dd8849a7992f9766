"""When requests enter: at the trace's times (open), or as others leave (closed loop)."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import simpy

from sim.core.timers import arrival_timer
from sim.types import FS_PER_S, N, to_fs

if TYPE_CHECKING:
    from sim.core.simulation import Simulation


class Arrivals(abc.ABC):
    """Feeds the rows of a trace into a simulation, in order."""

    def __init__(self, sim: Simulation, env: simpy.Environment, count: N) -> None:
        self.sim = sim
        self.env = env
        self.count = count
        self.next_row: N = 0
        self.timer = arrival_timer(env, self)

    @abc.abstractmethod
    def start(self) -> None:
        """Schedule the first arrivals."""

    @abc.abstractmethod
    def fire(self, now: int) -> None:
        """Let the requests that are due arrive."""


class OpenArrivals(Arrivals):
    """Requests come at fixed times, whatever the system does."""

    def __init__(self, sim: Simulation, env: simpy.Environment, times_s: list[float]) -> None:
        super().__init__(sim, env, len(times_s))
        self.times = [round(t * FS_PER_S) for t in times_s]

    def start(self) -> None:
        """Schedule the first arrival."""
        if self.times:
            self.timer.at(self.times[0])

    def fire(self, now: int) -> None:
        """Let all rows due now arrive, and schedule the next."""
        row = self.next_row
        due = now
        while due == now:
            self.sim.arrive(row, now)
            row += 1
            due = self.times[row] if row < self.count else -1
        self.next_row = row
        if due >= 0:
            self.timer.at(due)


class ClosedArrivals(Arrivals):
    """`concurrency` users, each sending the next row `think_s` after its last one has left.

    A request takes at least a femtosecond to follow: what a step's end causes is never in time for
    a plan made at that end, whichever instance ended first.
    """

    def __init__(
        self, sim: Simulation, env: simpy.Environment, count: N, concurrency: N, think_s: float
    ) -> None:
        super().__init__(sim, env, count)
        self.concurrency = concurrency
        self.think_fs = max(to_fs(think_s), 1)
        self.due: list[int] = []
        """Times of pending arrivals; they come in order because the think time is constant."""

    def start(self) -> None:
        """Let every user send a first request at time 0."""
        self.due = [0] * min(self.concurrency, self.count)
        if self.due:
            self.timer.at(0)

    def fire(self, now: int) -> None:
        """Let the next user's request arrive (one firing a request)."""
        due = 0
        while due < len(self.due) and self.due[due] == now:
            due += 1
        del self.due[:due]
        for _ in range(due):
            if self.next_row < self.count:
                self.next_row += 1
                self.sim.arrive(self.next_row - 1, now)

    def on_leave(self, now: int) -> None:
        """Schedule the user's next request."""
        if self.next_row + len(self.due) < self.count:
            at = now + self.think_fs
            if not self.due or self.due[-1] != at:
                self.timer.at(at)
            self.due.append(at)
