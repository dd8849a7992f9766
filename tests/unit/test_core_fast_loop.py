"""The fast loops do what stock SimPy does, for whatever runs beside the core."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import simpy
from simpy.core import EmptySchedule, Infinity

from sim.core.loop import INSTANCE, AgendaLoop, FastLoop, new_timer

Log = list[tuple[Any, ...]]

LOOPS = [simpy.Environment, FastLoop, AgendaLoop]
"""The reference first. The last one is for compiled cores and runs interpreted as well."""

all_loops = pytest.mark.parametrize("loop", LOOPS)


def bank(env: simpy.Environment, seed: int) -> Log:
    """Start customers, a resource, a store, conditions and a timer; return their log."""
    rng = random.Random(seed)
    log: Log = []
    counter = simpy.PriorityResource(env, capacity=2)
    store = simpy.Store(env, capacity=3)
    gate = env.event()

    def customer(name: int) -> Iterator[simpy.Event]:
        yield env.timeout(rng.randint(0, 20))
        with counter.request(priority=rng.randint(0, 2)) as request:
            patience = env.timeout(rng.randint(1, 10))
            result = yield request | patience
            log.append(("served" if request in result else "left", name, env.now))
            if request in result:
                yield env.timeout(rng.randint(0, 5))
                yield store.put(name)

    def collector() -> Iterator[simpy.Event]:
        while True:
            try:
                item = yield store.get()
                log.append(("collected", item, env.now))
                yield env.timeout(1)
            except simpy.Interrupt as interrupt:
                log.append(("interrupted", interrupt.cause, env.now))

    def opener(target: simpy.Process) -> Iterator[simpy.Event]:
        both = yield env.all_of([env.timeout(7, "a"), env.timeout(11, "b")])
        log.append(("both", list(both.values()), env.now))
        gate.succeed("open")
        target.interrupt("now")
        try:
            yield env.process(failing())
        except KeyError as error:
            log.append(("failed", str(error), env.now))

    def failing() -> Iterator[simpy.Event]:
        yield env.timeout(2)
        raise KeyError("lost")

    def waiter() -> Iterator[simpy.Event]:
        value = yield gate
        log.append((value, env.now))
        return "done"

    for name in range(12):
        env.process(customer(name))
    env.process(opener(env.process(collector())))
    end = env.process(waiter())
    end.callbacks.append(lambda event: log.append((event.value, env.now)))
    timer = new_timer(env, lambda now: tick(now), INSTANCE)

    def tick(now: int) -> None:
        log.append(("tick", now, env.now))
        if now < 40:
            timer.at(now + 5)

    timer.at(0)
    return log


@pytest.mark.parametrize("seed", range(20))
def test_processes_resources_and_conditions_run_as_on_stock_simpy(seed: int):
    logs, ends = [], []
    for loop in LOOPS:
        env = loop(initial_time=0)
        logs.append(bank(env, seed))
        env.run()
        ends.append((env.now, next(env._eid)))
    assert len(logs[0]) > 30
    assert logs[0] == logs[1] == logs[2]
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("seed", range(5))
def test_stepping_and_peeking_as_on_stock_simpy(seed: int):
    seen = []
    for loop in LOOPS:
        env = loop(initial_time=0)
        log = bank(env, seed)
        peeked = []
        while env.peek() < 30:
            peeked.append(env.peek())
            env.step()
        seen.append((peeked, list(log), env.now))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("seed", range(5))
def test_running_in_pieces_as_on_stock_simpy(seed: int):
    seen = []
    for loop in LOOPS:
        env = loop(initial_time=0)
        log = bank(env, seed)
        for until in (1, 5, 5.5, 12, 30):
            env.run(until=until)
            log.append(("paused", env.now, env.peek()))
        env.run()
        seen.append(log)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("loop", LOOPS[1:])
def test_nothing_left(loop: type[simpy.Environment]):
    env = loop(initial_time=0)
    assert env.peek() == Infinity
    with pytest.raises(EmptySchedule):
        env.step()
    assert env.run() is None


@all_loops
def test_run_until_an_event(loop: type[simpy.Environment]):
    env = loop(initial_time=0)
    event = env.timeout(3, "value")
    assert env.run(until=event) == "value"
    assert env.run(until=event) == "value"  # processed already
    with pytest.raises(ValueError, match=r"until \(3\) must be greater than the current"):
        env.run(until=3)
    with pytest.raises(RuntimeError, match='No scheduled events left but "until" event was not'):
        env.run(until=env.event())


@all_loops
def test_what_stands_behind_the_event_that_stops_is_called_when_the_run_resumes(
    loop: type[simpy.Environment],
):
    env = loop(initial_time=0)
    called: list[float] = []
    event = env.timeout(3)

    def late(event: simpy.Event) -> None:
        called.append(env.now)

    event.callbacks.append(simpy.core.StopSimulation.callback)
    event.callbacks.append(late)
    env.run()
    assert called == []
    env.run()
    assert called == [3]


@all_loops
def test_a_failure_nobody_handles_ends_the_run(loop: type[simpy.Environment]):
    env = loop(initial_time=0)

    def failing() -> Iterator[simpy.Event]:
        yield env.timeout(2)
        raise KeyError("lost")

    env.process(failing())
    with pytest.raises(KeyError, match="lost") as raised:
        env.run()
    assert isinstance(raised.value.__cause__, KeyError)
    process = env.process(failing())
    with pytest.raises(KeyError, match="lost"):
        env.run(until=process)


@all_loops
def test_an_error_in_a_timer_leaves_the_event_list_usable(loop: type[simpy.Environment]):
    env = loop(initial_time=0)
    fired: list[int] = []

    def fire(now: int) -> None:
        fired.append(now)
        if now == 1:
            raise KeyError("once")

    timer = new_timer(env, fire, INSTANCE)
    timer.at(1)
    timer.at(2)
    with pytest.raises(KeyError, match="once"):
        env.run()
    env.run()
    assert fired == [1, 2]


def drawn(env: simpy.Environment, seed: int) -> Log:
    """Run timers that arm each other, many at one instant, some beyond machine words."""
    rng = random.Random(seed)
    order: Log = []

    def fire(now: int, name: int) -> None:
        order.append((name, now, env.now, env.peek()))
        if len(order) < 300:
            timers[rng.randrange(12)].at(now + rng.choice([0, 1, 2, 3, 2**62]))
            if rng.random() < 0.3:
                event = env.timeout(rng.choice([0, 1, 2]))
                event.callbacks.append(lambda _: order.append(("event", env.now)))

    timers = [
        new_timer(env, lambda now, name=name: fire(now, name), 1 + name % 4) for name in range(12)
    ]
    for timer in timers:
        timer.at(rng.randrange(3))
    env.run()
    return order


@pytest.mark.parametrize("seed", range(10))
def test_timers_and_events_come_in_one_order_on_all_loops(seed: int):
    found = []
    for loop in LOOPS:
        env = loop(initial_time=0)
        found.append((drawn(env, seed), next(env._eid)))
    assert len(found[0][0]) > 50
    assert found[0] == found[1] == found[2]
