"""The unit of the benchmark: what SimPy itself takes for one event of a process."""

from __future__ import annotations

import time
from collections.abc import Generator

import simpy

REPEATS = 3


def bare_timeout_s(count: int = 200_000) -> float:
    """Return the processor seconds of one `yield env.timeout(1.0)` in a lone process.

    The fastest of three runs of `count` events.
    """
    return min(_seconds(count) for _ in range(REPEATS)) / count


def _seconds(count: int) -> float:
    env = simpy.Environment()
    env.process(_wait(env, count))
    began = time.process_time()
    env.run()
    return time.process_time() - began


def _wait(env: simpy.Environment, count: int) -> Generator[simpy.Event]:
    for _ in range(count):
        yield env.timeout(1.0)
