"""The fast loop does what stock SimPy does, for whatever runs beside the core."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import simpy
from simpy.core import EmptySchedule, Infinity

from sim.core.loop import INSTANCE, FastLoop, Timer, new_environment

Log = list[tuple[Any, ...]]


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
    timer = Timer(env, lambda now: tick(now), INSTANCE)

    def tick(now: int) -> None:
        log.append(("tick", now, env.now))
        if now < 40:
            timer.at(now + 5)

    timer.at(0)
    return log


@pytest.mark.parametrize("seed", range(20))
def test_processes_resources_and_conditions_run_as_on_stock_simpy(seed: int):
    logs, ends = [], []
    for loop in ("simpy", "fast"):
        env = new_environment(loop)
        logs.append(bank(env, seed))
        env.run()
        ends.append((env.now, next(env._eid)))
    assert len(logs[0]) > 30
    assert logs[0] == logs[1]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("seed", range(5))
def test_stepping_and_peeking_as_on_stock_simpy(seed: int):
    seen = []
    for loop in ("simpy", "fast"):
        env = new_environment(loop)
        log = bank(env, seed)
        peeked = []
        while env.peek() < 30:
            peeked.append(env.peek())
            env.step()
        seen.append((peeked, list(log), env.now))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("seed", range(5))
def test_running_in_pieces_as_on_stock_simpy(seed: int):
    seen = []
    for loop in ("simpy", "fast"):
        env = new_environment(loop)
        log = bank(env, seed)
        for until in (1, 5, 5.5, 12, 30):
            env.run(until=until)
            log.append(("paused", env.now, env.peek()))
        env.run()
        seen.append(log)
    assert seen[0] == seen[1]


def test_nothing_left():
    env = FastLoop(initial_time=0)
    assert env.peek() == Infinity
    with pytest.raises(EmptySchedule):
        env.step()
    assert env.run() is None


@pytest.mark.parametrize("loop", ["simpy", "fast"])
def test_run_until_an_event(loop: str):
    env = new_environment(loop)
    event = env.timeout(3, "value")
    assert env.run(until=event) == "value"
    assert env.run(until=event) == "value"  # processed already
    with pytest.raises(ValueError, match=r"until \(3\) must be greater than the current"):
        env.run(until=3)
    with pytest.raises(RuntimeError, match='No scheduled events left but "until" event was not'):
        env.run(until=env.event())


@pytest.mark.parametrize("loop", ["simpy", "fast"])
def test_what_stands_behind_the_event_that_stops_is_called_when_the_run_resumes(loop: str):
    env = new_environment(loop)
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


@pytest.mark.parametrize("loop", ["simpy", "fast"])
def test_a_failure_nobody_handles_ends_the_run(loop: str):
    env = new_environment(loop)

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


@pytest.mark.parametrize("loop", ["simpy", "fast"])
def test_an_error_in_a_timer_leaves_the_event_list_usable(loop: str):
    env = new_environment(loop)
    fired: list[int] = []

    def fire(now: int) -> None:
        fired.append(now)
        if now == 1:
            raise KeyError("once")

    timer = Timer(env, fire, INSTANCE)
    timer.at(1)
    timer.at(2)
    with pytest.raises(KeyError, match="once"):
        env.run()
    env.run()
    assert fired == [1, 2]
