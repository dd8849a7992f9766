"""When engines fail and for how long."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import numpy as np
from mypy_extensions import mypyc_attr

from sim.types import N, to_fs


@mypyc_attr(allow_interpreted_subclasses=True)
class Outages(abc.ABC):
    """A plan of failures. An engine is one instance, or all lanes of a pipeline."""

    @abc.abstractmethod
    def of(self, engine: N) -> Iterator[tuple[int, int]]:
        """Yield when an engine fails and when it is up again, in order, in femtoseconds."""


class ExponentialOutages(Outages):
    """Exponential times to failure, counted from the last repair, and exponential repairs.

    Every engine has a stream of its own, and times are unit draws times the means: policies,
    cluster sizes and means are compared under the same luck.

    Args:
        mtbf_s: mean time an engine is up, seconds.
        repair_s: mean time it is down, seconds.
        seed: of the draws.
    """

    def __init__(self, mtbf_s: float, repair_s: float, seed: int) -> None:
        self.mtbf_s = mtbf_s
        self.repair_s = repair_s
        self.seed = seed

    def of(self, engine: N) -> Iterator[tuple[int, int]]:
        """Yield failure and repair times without end."""
        stream = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(engine,)))
        now = 0
        while True:
            fails = now + max(to_fs(self.mtbf_s * stream.standard_exponential()), 1)
            now = fails + max(to_fs(self.repair_s * stream.standard_exponential()), 1)
            yield fails, now
