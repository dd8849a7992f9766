"""Pipeline parallelism: disjoint batches rotate through the stages of one engine."""

from __future__ import annotations

from sim.types import N


class Pipeline:
    """Stages that the lanes of one engine pass in order, one step at a time each.

    An engine with pp stages runs pp *lanes*: batches with their own requests and their own share of
    the KV cache, as vLLM's virtual engines have. A lane's step takes its whole duration to pass,
    1/pp of it in each stage, and waits where a stage is still busy with another lane.
    """

    def __init__(self, stages: N) -> None:
        self.free_fs = [0] * stages
        """When each stage is free."""

    def empty(self) -> None:
        """Forget what passes: the engine has failed."""
        self.free_fs = [0] * len(self.free_fs)

    def enter(self, now: int, duration: int) -> int:
        """Send a step of `duration` through; return when it leaves the last stage."""
        free = self.free_fs
        count = len(free)
        at = now
        for stage in range(count):
            # Integer shares that add up to the duration.
            share = duration * (stage + 1) // count - duration * stage // count
            at = max(at, free[stage]) + share
            free[stage] = at
        return at
