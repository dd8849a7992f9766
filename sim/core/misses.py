"""Ends a run as soon as it is certain that too many of its requests miss their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sim.types import FS_PER_S, N, Request, WaitQueue

MS_PER_S: Final = 1e3

LOOK_EVERY: Final = 64
"""Requests that leave between two looks at the queues; more when those are longer."""


class TooManyMisses(Exception):
    """Ends a run: what it would show is known."""


class MissLimit:
    """Counts requests that have missed a bound, those that wait too long already included.

    Exact: a run that is ended would have had more misses than allowed. Latencies are computed as
    `sim.study.statistics.metrics` does, from the same floats.

    Args:
        bounds_ms: of each source: time to first token, time per further token, end to end;
            infinite where there is none.
        source: source of each row of the trace; empty: all have the first.
        start_s: requests that arrive earlier do not count.
        allowed: misses over all sources.
        allowed_of: misses of each source.
        api_latency_ms: what the client waits outside the engine.
    """

    def __init__(
        self,
        bounds_ms: Sequence[tuple[float, float, float]],
        source: Sequence[N],
        start_s: float,
        allowed: N,
        allowed_of: Sequence[N],
        api_latency_ms: float = 0.0,
    ) -> None:
        self.bounds_ms = bounds_ms
        self.source = source
        self.start_s = start_s
        self.allowed = allowed
        self.allowed_of = allowed_of
        self.api_latency_ms = api_latency_ms
        self.missed_of: list[N] = [0] * len(bounds_ms)
        self.until_look: N = LOOK_EVERY

    def left(
        self, request: Request, finish_fs: int, emitted: N, queues: Sequence[WaitQueue], now: int
    ) -> None:
        """Note that a request has left.

        Args:
            request: who.
            finish_fs: when it got its last token; -1: never.
            emitted: its tokens.
            queues: where others wait.
            now: the clock.

        Raises:
            TooManyMisses: more have missed than allowed.
        """
        if request.arrival_s < self.start_s:
            return
        source = self._source(request)
        if finish_fs < 0 or self._late(request, finish_fs, emitted, source):
            self.missed_of[source] += 1
            self._check(self.missed_of)
        self.until_look -= 1
        if self.until_look <= 0:
            self._look(queues, now / FS_PER_S)

    def _source(self, request: Request) -> N:
        return self.source[request.id] if self.source else 0

    def _late(self, request: Request, finish_fs: int, emitted: N, source: N) -> bool:
        ttft, tpot, e2e = self.bounds_ms[source]
        ttft_ms = (request.first_token_fs / FS_PER_S - request.arrival_s) * MS_PER_S
        e2e_ms = (finish_fs / FS_PER_S - request.arrival_s) * MS_PER_S
        if self.api_latency_ms:
            ttft_ms += self.api_latency_ms
            e2e_ms += self.api_latency_ms
        if ttft_ms > ttft or e2e_ms > e2e:
            return True
        return emitted > 1 and (e2e_ms - ttft_ms) / (emitted - 1) > tpot

    def _look(self, queues: Sequence[WaitQueue], now_s: float) -> None:
        """Add those that wait for a first token that is late already."""
        missed, waiting = list(self.missed_of), 0
        for queue in queues:
            for request in queue:
                waiting += 1
                if request.first_token_fs >= 0 or request.arrival_s < self.start_s:
                    continue
                source = self._source(request)
                ttft, _, e2e = self.bounds_ms[source]
                waited_ms = (now_s - request.arrival_s) * MS_PER_S + self.api_latency_ms
                if waited_ms > min(ttft, e2e):
                    missed[source] += 1
        self._check(missed)
        self.until_look = max(LOOK_EVERY, waiting)

    def _check(self, missed: Sequence[N]) -> None:
        if sum(missed) > self.allowed:
            raise TooManyMisses
        for count, allowed in zip(missed, self.allowed_of, strict=True):
            if count > allowed:
                raise TooManyMisses
