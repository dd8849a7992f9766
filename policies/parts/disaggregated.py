"""What policies with separate prefill and decode pools share: layout and decode side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mypy_extensions import mypyc_attr

from sim.types import (
    ClusterInfo,
    Decode,
    N,
    Plan,
    Policy,
    Pool,
    Preemption,
    Prefill,
    Request,
    View,
)

GO_ON: Final = Decode()


@mypyc_attr(allow_interpreted_subclasses=True)
class Disaggregated(Policy):
    """Base of policies with half of the GPUs for prefill and the other half for decode.

    Args:
        max_num_seqs: requests in a decode batch, at most.
        ready_threshold: share of the decode blocks; pull while pulled prompts hold less.
        padded: pad prefills to their longest prompt.
    """

    def __init__(self, max_num_seqs: N, ready_threshold: float, padded: bool) -> None:
        self.max_num_seqs = max_num_seqs
        self.ready_threshold = ready_threshold
        self.padded = padded

    def pools(self, cluster: ClusterInfo) -> Sequence[Pool]:
        """Return one prefill and one decode instance on half of the GPUs each."""
        tp = max(cluster.gpus // 2, 1)
        return [Pool("prefill", 1, tp=tp), Pool("decode", 1, tp=tp)]

    def can_accept(self, view: View, request: Request) -> bool:
        """Pull while little waits to join and the prompt fits."""
        if view.ready_blocks >= self.ready_threshold * view.total_blocks:
            return False
        return view.blocks_to_decode(request.prefilled) <= view.free_blocks - view.growth_blocks

    def victim(self, view: View) -> Preemption:
        """Swap out the last of the batch."""
        return Preemption(view.running[next(reversed(view.running))], swap=True)

    def next_step(self, view: View, batch: Sequence[Request]) -> Plan | None:
        """Return the next step of an instance of any role.

        Swapped requests come back first, then `batch` is prefilled (on a decode instance: preempted
        requests that are recomputed), then pulled ones join in order, then the batch decodes.

        Args:
            view: the instance.
            batch: waiting requests chosen for a prefill; not looked at while requests are swapped
                out.
        """
        if not (batch or view.ready or view.swapped):
            return GO_ON if view.num_decoding else None
        seats = self.max_num_seqs - len(view.running)
        if seats <= 0:
            return GO_ON if view.num_decoding else None
        if view.swapped:
            back = _swap_in(view, seats)
            if back:
                return Decode(swap_in=back)
        elif batch:
            return Prefill(batch, self.padded)
        if view.ready:
            behind = bool(view.swapped or view.num_waiting)
            if not behind or not view.num_decoding:
                return Decode(admit=list(view.ready.values())[:seats], at_once=not behind)
        return GO_ON if view.num_decoding else None


def fcfs_batch(view: View, max_tokens: N, max_seqs: N) -> list[Request]:
    """Return waiting requests in order: their blocks fit, and at most so many prompt tokens.

    Tokens are counted unpadded; a prompt longer than `max_tokens` runs alone.
    """
    room = view.free_blocks
    budget = max_tokens
    size = view.block_size
    batch: list[Request] = []
    for request in view.waiting:
        budget -= request.target_tokens
        room -= -(-request.target_tokens // size)
        if room < 0 or (batch and budget < 0) or len(batch) == max_seqs:
            break
        batch.append(request)
    return batch


def _swap_in(view: View, seats: N) -> list[Request]:
    room = view.free_blocks - view.growth_blocks
    back: list[Request] = []
    for request in view.swapped.values():
        room -= view.blocks_to_decode(request.prefilled)
        if room < 0 or len(back) == seats:
            break
        back.append(request)
    return back
