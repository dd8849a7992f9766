"""Links that move KV caches between instances: latency, bandwidth, fair sharing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import simpy

from sim.core.timers import link_timer
from sim.types import FS_PER_S, N, Request, to_fs

if TYPE_CHECKING:
    from sim.core.seats import Seats

MIN_TRANSFER_FS: Final = 1
"""A transfer that moves anything takes time: it is never in time for the plan at whose step end it
was pulled."""


class Transfer:
    """A KV cache on its way from `source` to `target`."""

    __slots__ = ("request", "source", "target", "work_fs")

    def __init__(self, request: Request, source: Seats, target: Seats, work_fs: float) -> None:
        self.request = request
        self.source = source
        self.target = target
        self.work_fs = work_fs
        """Femtoseconds the rest would take with the link to itself."""


class Link:
    """A link of `bytes_per_s`; transfers under way share it equally.

    Equal sharing is that of long flows on one wire (processor sharing): n transfers each get 1/n of
    the bandwidth, recomputed whenever one starts or ends. Latency is added to the work.
    """

    def __init__(self, env: simpy.Environment, bytes_per_s: float, latency_s: float) -> None:
        self.env = env
        self.bytes_per_s = bytes_per_s
        self.latency_fs = to_fs(latency_s)
        self.active: list[Transfer] = []
        self.settled_fs = 0
        self.due_fs = -1
        self.timer = link_timer(env, self)

    def start(
        self, request: Request, source: Seats, target: Seats, size_bytes: float, now: int
    ) -> None:
        """Start moving `size_bytes` of a request's KV."""
        if self.active:
            self._progress(now)
        else:
            self.settled_fs = now
        work = self.latency_fs + size_bytes / self.bytes_per_s * FS_PER_S
        self.active.append(Transfer(request, source, target, work))
        self._schedule(now)

    def is_free(self, size_bytes: float) -> bool:
        """Whether so many bytes take no time at all, whatever else is under way."""
        return self.latency_fs == 0 and size_bytes / self.bytes_per_s == 0.0

    def cancel(self, request: Request, now: int) -> None:
        """Stop moving a request's KV; the others share what it leaves."""
        self._progress(now)
        self.active = [t for t in self.active if t.request is not request]
        self.due_fs = -1
        if self.active:
            self._schedule(now)

    def fire(self, now: int) -> None:
        """Transfers are done: source blocks come back, the target gets its requests."""
        if now != self.due_fs:
            return
        done = self.active
        if len(done) == 1:
            self.active = []
        else:
            self._progress(now)
            limit = max(min([t.work_fs for t in done]), 0.5)
            self.active = [t for t in done if t.work_fs > limit]
            done = [t for t in done if t.work_fs <= limit]
        self.settled_fs = now
        for transfer in done:
            transfer.source.transfer_left(transfer.request, now)
            transfer.target.transfer_arrived(transfer.request, now)
        self.due_fs = -1
        if self.active:
            self._schedule(now)

    def _progress(self, now: int) -> None:
        """Account for the time since the last change."""
        share = (now - self.settled_fs) / len(self.active)
        for transfer in self.active:
            transfer.work_fs -= share
        self.settled_fs = now

    def _schedule(self, now: int) -> None:
        active = self.active
        least = active[0].work_fs
        if len(active) > 1:
            least = min([t.work_fs for t in active]) * len(active)
        self.due_fs = now + max(round(least), MIN_TRANSFER_FS)
        self.timer.at(self.due_fs)


class Links:
    """The links of a cluster: one per pair of instances, or one that all share.

    Without latency, what is hidden entirely (or of no bytes, or on a link of infinite bandwidth)
    arrives at the instant it is pulled, and can join that very step.

    Args:
        bytes_per_s: bandwidth of a link, one way.
        latency_s: time before the first byte.
        shared: whether all transfers share one link.
        overlap: share of a transfer hidden behind the prefill (layer by layer, as in Splitwise).
    """

    def __init__(
        self,
        env: simpy.Environment,
        bytes_per_s: float,
        latency_s: float,
        shared: bool,
        overlap: float,
    ) -> None:
        self.env = env
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.shared = shared
        self.exposed = 1.0 - overlap
        self.links: dict[tuple[N, N], Link] = {}

    def start(self, request: Request, source: Seats, target: Seats, now: int) -> None:
        """Move a request's KV from `source` to `target`."""
        key = self._key(source, target)
        link = self.links.get(key)
        if link is None:
            link = self.links[key] = Link(self.env, self.bytes_per_s, self.latency_s)
        size = request.prefilled * source.spec.kv_token_bytes * self.exposed
        if link.is_free(size):
            # A source of lower index has planned at this instant already (see `Seats.hand_over`).
            source.transfer_left(request, now if target.id < source.id else now + 1)
            target.transfer_arrived(request, now)
            return
        link.start(request, source, target, size, now)

    def cancel(self, request: Request, source: Seats, target: Seats, now: int) -> None:
        """Stop moving a request's KV: one of both instances has failed."""
        self.links[self._key(source, target)].cancel(request, now)

    def _key(self, source: Seats, target: Seats) -> tuple[N, N]:
        return (-1, -1) if self.shared else (source.id, target.id)
