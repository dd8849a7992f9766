"""The event loop: SimPy with an integer clock and an explicit order of coinciding events."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

import simpy

from sim.types import N

# Named here because a compiled module finds a `Final` without looking it up.
heappush: Final = heapq.heappush
heappop: Final = heapq.heappop

# Order of events at one instant (smaller first). SimPy itself stops a run with priority 0.
FAILURE: Final = 1
ARRIVAL: Final = 2
ABORT: Final = 3
TRANSFER: Final = 4
MONITOR: Final = 5
INSTANCE: Final = 10
"""Step ends and plans come last, instance by instance: priority INSTANCE + index."""


class Timer:
    """An event that can be scheduled again and again, at absolute times.

    One object serves an instance for the whole run: creating an event for each step would cost as
    much as firing it. A timer may stand in the event list several times; its callback tells a
    superseded firing by the time it expects.

    It has what SimPy's loop asks of an event (`callbacks`, `_ok`) but nobody can wait for it: an
    object of its own, because a compiled class is only fast without an interpreted base.

    Args:
        env: the event loop, stock or fast.
        callback: called with the time in femtoseconds at every firing.
        priority: order among the events of one instant.
    """

    __slots__ = ("_ok", "armed", "callback", "callbacks", "env", "events", "priority", "serial")

    def __init__(
        self, env: simpy.Environment, callback: Callable[[int], None], priority: int
    ) -> None:
        self.env = env
        self.callback = callback
        self.priority = priority
        self._ok = True
        self.armed: list[Any] = [self.fire]
        """SimPy takes `callbacks` when it fires; putting this back makes the timer usable again."""
        self.callbacks: list[Any] | None = self.armed
        # `Environment.schedule` takes a delay and adds the clock again; with one timer a step the
        # detour is 2 % of a run. tests/unit/test_core_loop.py guards the private names.
        self.events: list[Any] = env._queue
        self.serial = env._eid

    def at(self, time_fs: int) -> None:
        """Schedule the timer at absolute time `time_fs` (not before now)."""
        heappush(self.events, (time_fs, self.priority, next(self.serial), self))

    def call(self, now: int) -> None:
        """Do what is to be done at time `now`."""
        self.callback(now)

    def fire(self, event: Any) -> None:
        """Let stock SimPy fire it."""
        self.callbacks = self.armed
        now: int = self.env._now  # type: ignore[assignment]
        self.callback(now)


class FastLoop(simpy.Environment):
    """SimPy's environment with a loop that calls timers directly, without a callback list.

    Processes, resources and conditions run beside the core as on stock SimPy, in the same order:
    both loops take the same entries from the same event list.
    """

    def peek(self) -> Any:
        """Return the time of the next event; infinite when there is none."""
        events = self._queue
        return events[0][0] if events else simpy.core.Infinity

    def step(self) -> None:
        """Process the next event; `EmptySchedule` when there is none."""
        events: list[Any] = self._queue
        if not events:
            raise simpy.core.EmptySchedule
        at, _, _, event = heappop(events)
        self._now = at
        if isinstance(event, Timer):
            event.callback(at)
        else:
            self._process(event)

    def run(self, until: Any = None) -> Any:
        """Process events until there are none, a time is reached or an event has been processed.

        `until` is a time or an event, whose value is returned. Raises `ValueError` for a time that
        is not after now, `RuntimeError` when the events end before the event `until`.
        """
        stop: simpy.Event | None = None
        if until is not None:
            stop = until if isinstance(until, simpy.Event) else self._stop_at(until)
            if stop.callbacks is None:
                return stop.value
            stop.callbacks.append(simpy.core.StopSimulation.callback)
        try:
            self._run_all()
        except simpy.core.StopSimulation as stopped:
            return stopped.args[0]
        if stop is not None:
            raise RuntimeError(
                f'No scheduled events left but "until" event was not triggered: {stop}'
            )
        return None

    def _run_all(self) -> None:
        """Process events until there are none."""
        events: list[Any] = self._queue
        # Python 3.11 makes a loop faster while it runs only if it ends in an unconditional jump:
        # `while events` would stay as slow as the first time, this is half the price.
        while True:
            try:
                at, _, _, event = heappop(events)
            except IndexError:
                return
            self._now = at
            try:  # cheaper than to ask whether it is a timer, as nearly all are
                fire = event.callback
            except AttributeError:
                self._process(event)
            else:
                fire(at)

    def _stop_at(self, until: Any) -> simpy.Event:
        """Return an event at a time, before all others of that instant.

        No `float` here: a compiled function would make one of an integer time.
        """
        at: Any = until if isinstance(until, int) else float(until)
        if at <= self._now:
            raise ValueError(f"until ({at}) must be greater than the current simulation time")
        stop = simpy.Event(self)
        stop._ok = True
        stop._value = None
        self.schedule(stop, simpy.events.URGENT, at - self._now)
        return stop

    def _process(self, event: simpy.Event) -> None:
        """Process an ordinary event, as `simpy.Environment.step` does."""
        callbacks: list[Any] = event.callbacks
        event.callbacks = None  # type: ignore[assignment]
        done = 0
        try:
            for callback in callbacks:
                done += 1
                callback(event)
        except simpy.core.StopSimulation:
            # Whoever stands behind the one that stops is called when the run resumes.
            event.callbacks = callbacks[done:]
            self.schedule(event, simpy.events.EventPriority(-1))
            raise
        if not event._ok and not hasattr(event, "_defused"):
            failed: Any = event._value
            error = type(failed)(*failed.args)
            error.__cause__ = failed
            raise error


class Entry:
    """One firing to come: as an entry of SimPy's event list, without a tuple of objects."""

    __slots__ = ("at_fs", "priority", "serial", "timer")

    def __init__(self, at_fs: int, priority: int, serial: int, timer: Timer) -> None:
        self.at_fs = at_fs
        self.priority = priority
        self.serial = serial
        self.timer = timer


class Agenda:
    """Firings to come in the order of SimPy's event list, the next one last.

    There are about as many as instances: where one belongs is found by halving.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.serial = 0
        """Entries made so far, here and in SimPy's event list."""
        self.now_fs = 0
        """When the last timer fired."""
        self.other_now: Any = 0
        """The clock while an ordinary event is processed; None: `now_fs` is the clock."""

    def add(self, at_fs: int, timer: Timer) -> None:
        """Let `timer` fire at `at_fs`: after all of the same time and priority."""
        entries = self.entries
        priority = timer.priority
        low, high = 0, len(entries)
        while low < high:
            middle = (low + high) >> 1
            entry = entries[middle]
            if entry.at_fs > at_fs or (entry.at_fs == at_fs and entry.priority > priority):
                low = middle + 1
            else:
                high = middle
        entries.insert(low, Entry(at_fs, priority, self.serial, timer))
        self.serial += 1

    def is_next(self, event: Any) -> bool:
        """Whether its next firing comes before an entry of SimPy's event list."""
        if not self.entries:
            return False
        entry = self.entries[-1]
        return bool((entry.at_fs, entry.priority, entry.serial) < event[:3])

    def fire(self) -> None:
        """Let the next timer fire."""
        entry = self.entries.pop()
        self.other_now = None
        self.now_fs = entry.at_fs
        entry.timer.call(entry.at_fs)


class Serials:
    """The numbers of SimPy's entries (`Environment._eid`), counted together with an agenda's."""

    def __init__(self, agenda: Agenda) -> None:
        self.agenda = agenda

    def __iter__(self) -> Serials:
        """Return itself."""
        return self

    def __next__(self) -> Any:  # `int` would reach Python as a machine word
        """Return the next number."""
        self.agenda.serial += 1
        return self.agenda.serial - 1


class AgendaLoop(FastLoop):
    """The fast loop of a compiled core: timers stand in a list of their own.

    SimPy's event list holds ordinary events only and is empty when the core is alone. Both are
    worked off in the order one list would have.
    """

    def __init__(self, initial_time: int = 0) -> None:
        self.agenda = Agenda()
        super().__init__(initial_time)
        self._eid = Serials(self.agenda)  # type: ignore[assignment]

    @property
    def _now(self) -> Any:
        """The clock: SimPy's code reads and sets it."""
        agenda = self.agenda
        return agenda.now_fs if agenda.other_now is None else agenda.other_now

    @_now.setter
    def _now(self, now: Any) -> None:
        self.agenda.other_now = now

    def peek(self) -> Any:
        """Return the time of the next event; infinite when there is none."""
        if self._queue and not self.agenda.is_next(self._queue[0]):
            return self._queue[0][0]
        entries = self.agenda.entries
        return entries[-1].at_fs if entries else simpy.core.Infinity

    def step(self) -> None:
        """Process the next event; `EmptySchedule` when there is none."""
        if self._queue and not self.agenda.is_next(self._queue[0]):
            super().step()
        elif self.agenda.entries:
            self.agenda.fire()
        else:
            raise simpy.core.EmptySchedule

    def _run_all(self) -> None:
        """Process events until there are none."""
        events: list[Any] = self._queue
        agenda = self.agenda
        while True:
            if events and not agenda.is_next(events[0]):
                super().step()
            elif agenda.entries:
                agenda.fire()
            else:
                return


class AgendaTimer(Timer):
    """A timer on an agenda. Subclasses call what they wake without a bound method."""

    __slots__ = ("agenda",)

    def __init__(self, env: AgendaLoop, callback: Callable[[int], None], priority: int) -> None:
        super().__init__(env, callback, priority)
        self.agenda: Agenda = env.agenda

    def at(self, time_fs: int) -> None:
        """Schedule the timer at absolute time `time_fs` (not before now)."""
        self.agenda.add(time_fs, self)


COMPILED: Final = not isinstance(Timer.at, FunctionType)
"""Whether this module is compiled. Interpreted, `heapq` is the faster list."""

LOOPS: dict[str, type[simpy.Environment]] = {
    "fast": AgendaLoop if COMPILED else FastLoop,
    "simpy": simpy.Environment,
}


def new_timer(env: simpy.Environment, callback: Callable[[int], None], priority: int) -> Timer:
    """Return a timer that suits the loop (arguments: `Timer`)."""
    if isinstance(env, AgendaLoop):
        return AgendaTimer(env, callback, priority)
    return Timer(env, callback, priority)


def new_environment(loop: str = "fast") -> simpy.Environment:
    """Return an environment whose clock counts integer femtoseconds from 0.

    Args:
        loop: `fast`, or `simpy` for the stock loop; records are the same.
    """
    if loop not in LOOPS:
        raise ValueError(f"engine.loop: unknown loop {loop!r}; valid: {', '.join(LOOPS)}")
    return LOOPS[loop](initial_time=0)


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
    covered = m * first + increment * (m * (m - 1) // 2)
    while covered < elapsed:
        covered += first + increment * m
        m += 1
    while True:
        covered -= first + increment * (m - 1)
        if covered < elapsed:
            return m
        m -= 1
