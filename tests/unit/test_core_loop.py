"""Integer time: steps in a duration, the re-armable timer, and what it relies on in SimPy."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import simpy

from sim.core.loop import (
    ABORT,
    ARRIVAL,
    FAILURE,
    INSTANCE,
    LOOPS,
    AgendaLoop,
    Timer,
    new_environment,
    new_timer,
    steps_to_cover,
)

# -- steps_to_cover ---------------------------------------------------------------------------


def duration(steps: int, first: int, increment: int) -> int:
    """Of `steps` steps, each `increment` longer than the one before."""
    return steps * first + increment * steps * (steps - 1) // 2


@pytest.mark.parametrize("first", [1, 2, 7, 100])
@pytest.mark.parametrize("increment", [0, 1, 3, 50, 1000])
def test_steps_to_cover_by_counting(first: int, increment: int):
    for elapsed in range(-3, 400):
        counted = next(m for m in itertools.count(1) if duration(m, first, increment) >= elapsed)
        assert steps_to_cover(elapsed, first, increment) == counted


def test_steps_to_cover_at_exact_ends_of_huge_spans():
    rng = random.Random(0)
    for _ in range(2000):
        first = rng.randint(1, 10 ** rng.randint(1, 18))
        increment = rng.choice([0, rng.randint(0, 10 ** rng.randint(1, 16))])
        steps = rng.randint(1, 10 ** rng.randint(1, 7))
        end = duration(steps, first, increment)
        assert steps_to_cover(end, first, increment) == steps
        assert steps_to_cover(end + 1, first, increment) == steps + 1
        if end > 1:
            expected = (
                steps - 1
                if steps > 1 and duration(steps - 1, first, increment) == end - 1
                else steps
            )
            assert steps_to_cover(end - 1, first, increment) == expected


def test_steps_to_cover_of_random_durations_is_the_smallest():
    rng = random.Random(1)
    for _ in range(2000):
        elapsed = rng.randint(1, 10 ** rng.randint(1, 22))
        first = rng.randint(max(1, elapsed // 10**7), max(1, elapsed))
        increment = rng.randint(0, first)
        m = steps_to_cover(elapsed, first, increment)
        assert duration(m, first, increment) >= elapsed
        assert m == 1 or duration(m - 1, first, increment) < elapsed


# -- the timer --------------------------------------------------------------------------------

both_loops = pytest.mark.parametrize("loop", [*LOOPS, "agenda"])


@pytest.fixture(autouse=True)
def _agenda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop of compiled cores be asked for, too."""
    monkeypatch.setitem(LOOPS, "agenda", AgendaLoop)


@both_loops
def test_timer_fires_again_and_again_among_ordinary_simpy_events(loop: str):
    env = new_environment(loop)
    log: list[tuple[str, Any]] = []

    def fire(now: int) -> None:
        log.append(("timer", now))
        assert env.now == now
        if now < 30:
            timer.at(now + 10)

    def clock() -> Iterator[simpy.Event]:
        for _ in range(3):
            yield env.timeout(10)
            log.append(("process", env.now))

    timer = new_timer(env, fire, INSTANCE)
    timer.at(10)
    env.process(clock())
    env.run()
    # At one instant the timer comes last: its priority number is larger than SimPy's own, 1.
    assert log == [
        *(("process", 10), ("timer", 10)),
        *(("process", 20), ("timer", 20)),
        *(("process", 30), ("timer", 30)),
    ]
    assert all(type(at) is int for _, at in log)


@both_loops
def test_a_superseded_firing_is_told_by_its_time(loop: str):
    env = new_environment(loop)
    fired: list[int] = []
    due, done = 50, []

    def fire(now: int) -> None:
        nonlocal due
        fired.append(now)
        if now == due:
            due = -1
            done.append(now)

    timer = new_timer(env, fire, INSTANCE)
    timer.at(50)
    due = 30  # an earlier end supersedes it; the first stays in the event list
    timer.at(30)
    env.run()
    assert fired == [30, 50]
    assert done == [30]


@both_loops
def test_events_at_one_instant_come_in_the_order_of_the_design(loop: str):
    assert 0 < FAILURE < ARRIVAL < ABORT < INSTANCE
    env = new_environment(loop)
    order: list[int] = []
    # Inserted in the wrong order: instances, then an abort, an arrival and a failure.
    for priority in (INSTANCE + 2, INSTANCE, INSTANCE + 1, ABORT, ARRIVAL, FAILURE):
        new_timer(env, lambda now, priority=priority: order.append(priority), priority).at(7)
    env.run()
    assert order == [FAILURE, ARRIVAL, ABORT, INSTANCE, INSTANCE + 1, INSTANCE + 2]


@both_loops
def test_the_clock_does_not_lose_a_femtosecond_in_a_day(loop: str):
    env = new_environment(loop)
    times: list[int] = []
    new_timer(env, times.append, INSTANCE).at(86_400 * 10**15 + 1)
    env.run()
    assert times == [86_400 * 10**15 + 1]


def test_an_unknown_loop_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(LOOPS, "agenda")
    with pytest.raises(ValueError, match=r"engine.loop: unknown loop 'slow'; valid: fast, simpy"):
        new_environment("slow")


# -- SimPy: the names and behaviours the timer relies on, not all of them public ---------------


def test_simpy_is_the_version_this_was_written_for():
    assert simpy.__version__ == "4.1.2"


def test_simpy_event_list_is_a_heap_of_time_priority_number_event():
    env = simpy.Environment(initial_time=0)
    event = simpy.Event(env)
    event._ok, event._value = True, None
    env.schedule(event, priority=7, delay=5)
    ((at, priority, number, queued),) = env._queue
    assert (at, priority, number) == (5, 7, 0)
    assert queued is event
    assert type(at) is int
    assert next(env._eid) == 1


def test_timer_at_does_what_schedule_does():
    env = simpy.Environment(initial_time=3)
    timer: Any = Timer(env, lambda now: None, INSTANCE)
    env.schedule(timer, INSTANCE, 5)
    timer.at(8)
    assert [entry[:3] for entry in sorted(env._queue, key=lambda e: e[2])] == [
        (8, INSTANCE, 0),
        (8, INSTANCE, 1),
    ]


def test_simpy_takes_the_callbacks_before_it_calls_them():
    env = simpy.Environment(initial_time=0)
    seen: list[Any] = []
    event = simpy.Event(env)
    event._ok, event._value = True, None
    event.callbacks.append(lambda e: seen.append(e.callbacks))
    env.schedule(event, priority=7, delay=5)
    env.run()
    assert seen == [None]
    assert event.processed
    assert (env.now, env._now) == (5, 5)


@both_loops
def test_run_until_stops_before_everything_of_that_instant(loop: str):
    env = new_environment(loop)
    fired: list[int] = []
    for priority in (ARRIVAL, INSTANCE):
        for at in (6, 7):
            new_timer(env, fired.append, priority).at(at)
    env.run(until=7)
    assert fired == [6, 6]
    assert env.now == 7
    assert type(env.now) is int


@both_loops
def test_a_run_ends_when_nothing_is_left(loop: str):
    env = new_environment(loop)
    env.run()
    assert env.now == 0
