"""What runs steps for real, where the simulation only prices them."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from sim.types import N, Request


@mypyc_attr(allow_interpreted_subclasses=True)
class Executor(abc.ABC):
    """A device behind the engine: same policy, queues and blocks, but measured durations.

    The engine decides as ever and asks the executor how long each step took. Steps are not fused
    then (`Settings.fuse_steps` must be off), and cost models are only there for policies that ask.
    """

    @abc.abstractmethod
    def look(self) -> None:
        """Note that the engine turns to an instance: a step has ended, or something woke it."""

    @abc.abstractmethod
    def step(
        self, chunks: Sequence[tuple[Request, N]], decodes: Sequence[Request], padded: bool
    ) -> int:
        """Run one step and return its duration, femtoseconds.

        Args:
            chunks: requests with the tokens to prefill now, after `request.prefilled` cached ones.
            decodes: requests that decode one token.
            padded: every row as long as the longest, chunks and decodes alike.
        """
