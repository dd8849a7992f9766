"""When requests enter: the trace's times, or as others leave."""

from typing import Any

import simpy

from sim.core.arrivals import ClosedArrivals, OpenArrivals
from sim.core.loop import INSTANCE, Timer, new_environment
from sim.types import to_fs


class Recorder:
    """Stands in for a simulation: notes arrivals, and serves each in `service_fs`."""

    def __init__(self, env: simpy.Environment, service_fs: int = 0) -> None:
        self.env = env
        self.service_fs = service_fs
        self.arrivals: list[tuple[int, int]] = []
        self.closed: Any = None

    def arrive(self, row: int, now: int) -> None:
        assert now == self.env.now
        self.arrivals.append((row, now))
        if self.closed is not None:
            if self.service_fs:
                Timer(self.env, self.leave, INSTANCE).at(now + self.service_fs)
            else:
                self.closed.on_leave(now)

    def leave(self, now: int) -> None:
        self.closed.on_leave(now)


def run_open(times_s: list[float]) -> tuple[list[tuple[int, int]], int]:
    env = new_environment()
    sim = Recorder(env)
    OpenArrivals(sim, env, times_s).start()
    env.run()
    return sim.arrivals, next(env._eid)


def run_closed(
    count: int, concurrency: int, think_s: float, service_fs: int
) -> list[tuple[int, int]]:
    env = new_environment()
    sim = Recorder(env, service_fs)
    sim.closed = ClosedArrivals(sim, env, count, concurrency, think_s)
    sim.closed.start()
    env.run()
    return sim.arrivals


def test_open_arrivals_in_trace_order():
    arrivals, events = run_open([0.0, 0.5, 0.5, 0.5, 2.0])
    second = to_fs(1)
    assert arrivals == [
        (0, 0),
        (1, second // 2),
        (2, second // 2),
        (3, second // 2),
        (4, 2 * second),
    ]
    assert events == 3  # one for each distinct time


def test_open_arrivals_of_an_empty_trace():
    assert run_open([]) == ([], 0)


def test_all_at_once():
    arrivals, events = run_open([0.0] * 1000)
    assert arrivals == [(row, 0) for row in range(1000)]
    assert events == 1


def test_closed_loop_keeps_so_many_in_flight():
    think_s, think, service = 1e-14, 10, 5
    # Two users: 0 and 0, then each 5 + 10 later.
    assert run_closed(5, 2, think_s, service) == [
        (0, 0),
        (1, 0),
        (2, service + think),
        (3, service + think),
        (4, 2 * (service + think)),
    ]


def test_closed_loop_with_more_users_than_requests():
    assert run_closed(2, 10, 0.0, 5) == [(0, 0), (1, 0)]


def test_closed_loop_without_think_time_takes_a_femtosecond():
    assert run_closed(3, 1, 0.0, 5) == [(0, 0), (1, 6), (2, 12)]


def test_closed_loop_when_requests_leave_as_they_arrive():
    # Every request is rejected at once: the users still go on to the end of the trace.
    assert run_closed(5, 2, 1e-14, 0) == [(0, 0), (1, 0), (2, 10), (3, 10), (4, 20)]
    assert [row for row, _ in run_closed(7, 3, 0.0, 0)] == list(range(7))
