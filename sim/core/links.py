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


class Link:
    """A link whose transfers under way share it equally.

    Equal sharing is that of long flows on one wire (processor sharing): n transfers each get 1/n of
    the bandwidth, recomputed whenever one starts or ends.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self.active: list[tuple[Request, Seats, Seats]] = []
        """Transfers under way: whose KV cache, from where, to where."""
        self.work_fs: list[float] = []
        """Femtoseconds the rest of each would take with the link to itself."""
        self.settled_fs = 0
        self.due_fs = -1
        self.timer = link_timer(env, self)

    def start(self, request: Request, source: Seats, target: Seats, work: float, now: int) -> None:
        """Start to move a request's KV, which takes `work` femtoseconds on an empty link."""
        if self.active:
            self._progress(now)
        else:
            self.settled_fs = now
        self.active.append((request, source, target))
        self.work_fs.append(work)
        self._schedule(now)

    def cancel(self, request: Request, now: int) -> None:
        """Stop moving a request's KV, if it is on this link; the others share what it leaves."""
        moving = [moved for moved, _, _ in self.active]
        if request not in moving:
            return
        self._progress(now)
        at = moving.index(request)
        del self.active[at], self.work_fs[at]
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
            self.work_fs.clear()
        else:
            done = self._take_done(now)
        self.settled_fs = now
        for request, source, target in done:
            source.transfer_left(request, now)
            target.transfer_arrived(request, now)
        self.due_fs = -1
        if self.active:
            self._schedule(now)

    def _take_done(self, now: int) -> list[tuple[Request, Seats, Seats]]:
        """Account for the time since the last change; take out what has arrived."""
        self._progress(now)
        limit = max(min(self.work_fs), 0.5)
        both = list(zip(self.active, self.work_fs, strict=True))
        self.active = [transfer for transfer, work in both if work > limit]
        self.work_fs = [work for work in self.work_fs if work > limit]
        return [transfer for transfer, work in both if work <= limit]

    def _progress(self, now: int) -> None:
        """Account for the time since the last change."""
        share = (now - self.settled_fs) / len(self.active)
        self.work_fs = [work - share for work in self.work_fs]
        self.settled_fs = now

    def _schedule(self, now: int) -> None:
        least = self.work_fs[0]
        if len(self.work_fs) > 1:
            least = min(self.work_fs) * len(self.work_fs)
        due = now + round(least)
        self.due_fs = due if due > now else now + MIN_TRANSFER_FS
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
        self.latency_fs = to_fs(latency_s)
        self.shared = shared
        self.exposed = 1.0 - overlap
        self.links: dict[tuple[N, N], Link] = {}

    def start(self, request: Request, source: Seats, target: Seats, now: int) -> None:
        """Move a request's KV from `source` to `target`; latency is added to the work."""
        size = request.prefilled * source.spec.kv_token_bytes * self.exposed
        work = self.latency_fs + size / self.bytes_per_s * FS_PER_S
        if work == 0.0:
            # A source of lower index has planned at this instant already (see `Seats.hand_over`).
            source.transfer_left(request, now if target.id < source.id else now + 1)
            target.transfer_arrived(request, now)
            return
        key = (-1, -1) if self.shared else (source.id, target.id)
        link = self.links.get(key)
        if link is None:
            link = self.links[key] = Link(self.env)
        link.start(request, source, target, work, now)

    def cancel(self, request: Request, now: int) -> None:
        """Stop moving a request's KV: one of both instances has failed."""
        for link in self.links.values():
            link.cancel(request, now)
