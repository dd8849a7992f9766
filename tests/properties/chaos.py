"""A test policy that uses every plan and every field of a plan.

The built-in policies never pause, slice time or evict on a reserve; the engine offers it to those
that come. All decisions are pure functions of the view, and `Decode` keeps its promise: rules on
the clock give `until_s`, rules on memory `max_steps`.
"""

from __future__ import annotations

from typing import Literal

from policies.base import (
    Config,
    Decode,
    Field,
    Mixed,
    N,
    Plan,
    Policy,
    Preemption,
    Prefill,
    Request,
    RunToCompletion,
    View,
    Wait,
    policy,
)


class ChaosConfig(Config):
    """What to be chaotic about."""

    quantum_s: float = Field(1.0, gt=0, description="seconds between changes of mind")
    groups: int = Field(3, ge=1, le=4, description="one of so many groups sits out; 1: none")
    reserve_blocks: int = Field(2, ge=0, le=12, description="evict when fewer are free")
    swap: bool = Field(True, description="evict by swap")
    max_num_seqs: int = Field(6, ge=1, description="requests running at a time")
    chunk: int = Field(16, ge=1, description="tokens of a prompt in one step")
    prefill: Literal["whole", "alone", "beside"] = Field("beside", description="kind of prefill")
    padded: bool = Field(False, description="pad whole prefills")
    static_when_idle: bool = Field(False, description="start with a static batch when idle")
    release: Literal["together", "each"] = Field("each", description="of that batch")
    queue: Literal["instance", "cluster"] = Field("instance", description="where requests wait")
    closed_phase: bool = Field(True, description="admit nobody in every third quantum")


@policy("chaos")
class Chaos(Policy):
    """Rotate who sits out, keep a reserve of blocks, and close the door now and then."""

    Config = ChaosConfig

    def __init__(self, config: ChaosConfig) -> None:
        self.config = config
        self.queue_scope = config.queue

    def plan(self, view: View) -> Plan | None:
        """Rotate, evict, swap in, admit, decode: the first that applies."""
        slot = self._slot(view)
        turn = self._rotate(view, slot)
        if turn is not None:
            return turn
        evicting = view.num_decoding > 1 and view.free_blocks < self.config.reserve_blocks
        if view.prefilling:
            chunks = self._chunks(view)
            return Mixed(chunks, self._beside, [self._last(view)] if evicting else ())
        if evicting:
            return Decode(preempt=[self._last(view)])
        back = self._swap_in(view)
        if back:
            return Decode(swap_in=back)
        closed = self.config.closed_phase and slot % 3 == 2
        if view.num_waiting and not closed and not view.swapped:
            plan = self._admit(view)
            if plan is not None:
                return plan
        until_s = (slot + 1) * self.config.quantum_s
        if not view.num_decoding:
            return Wait(until_s)
        return Decode(self._steps(view), until_s)

    def victim(self, view: View) -> Preemption:
        """Evict the first admitted for a change, unless it is alone."""
        return Preemption(next(iter(view.running.values())), self.config.swap)

    # -- rules ------------------------------------------------------------------------------

    @property
    def _beside(self) -> bool:
        return self.config.prefill == "beside"

    def _slot(self, view: View) -> int:
        """Return the quantum under way, by the very product that `until_s` is."""
        now_s, quantum_s = view.now_s, self.config.quantum_s
        slot = int(now_s / quantum_s)
        while slot * quantum_s > now_s:
            slot -= 1
        while (slot + 1) * quantum_s <= now_s:
            slot += 1
        return slot

    def _rotate(self, view: View, slot: int) -> Decode | None:
        groups = self.config.groups
        seated = [r for r in view.running.values() if r.id not in view.prefilling]
        seated = [r for r in seated if r not in view.leaving]
        rest = {r.id for r in seated if groups > 1 and r.id % groups == slot % groups}
        if len(rest) == len(seated):
            rest = set()
        pause = [r for r in seated if r.id in rest and r.id not in view.paused]
        resume = [r for r in view.paused.values() if r.id not in rest]
        return Decode(pause=pause, resume=resume) if pause or resume else None

    def _last(self, view: View) -> Preemption:
        decoding = [
            r
            for r in view.running.values()
            if r.id not in view.prefilling and r.id not in view.paused and r not in view.leaving
        ]
        return Preemption(decoding[-1], self.config.swap)

    def _chunks(self, view: View) -> list[tuple[Request, N]]:
        left = [(r, r.target_tokens - r.prefilled) for r in view.prefilling.values()]
        return [(r, min(tokens, self.config.chunk)) for r, tokens in left]

    def _room(self, view: View) -> N:
        """Blocks for newcomers: all when nothing runs, else beside growth and reserve."""
        if not view.num_running:
            return view.free_blocks
        return view.free_blocks - view.growth_blocks - self.config.reserve_blocks

    def _swap_in(self, view: View) -> list[Request]:
        room, seats = self._room(view), self.config.max_num_seqs - view.num_running
        back: list[Request] = []
        for request in view.swapped.values():
            room -= view.blocks_for(request.prefilled + 1)
            if room < 0 or len(back) >= seats:
                break
            back.append(request)
        return back

    def _admit(self, view: View) -> Plan | None:
        room, seats = self._room(view), self.config.max_num_seqs - view.num_running
        batch: list[Request] = []
        for request in view.waiting:
            room -= view.blocks_for(request.target_tokens)
            if room < 0 or len(batch) >= seats:
                break
            batch.append(request)
        if not batch:
            return None
        if self.config.static_when_idle and not view.num_running and not batch[0].emitted:
            fresh = [r for r in batch if not r.emitted]
            size = max(len(fresh) >> batch[0].retries, 1)
            return RunToCompletion(fresh[:size], self.config.padded, self.config.release)
        if self.config.prefill == "whole":
            return Prefill(batch, self.config.padded)
        chunks = [(r, min(r.target_tokens, self.config.chunk)) for r in batch]
        return Mixed(chunks, self._beside)

    def _steps(self, view: View) -> N | None:
        if view.num_decoding < 2:
            return None
        return view.steps_until_free_below(self.config.reserve_blocks)
