"""Splitwise's machine pools: which machine prefills a request, which decodes it, who is lent out.

A ledger of what has been assigned to each machine, kept at arrivals, prefill ends and departures.
It reads from the views only what a fused span of steps does not change.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.types import N, Request, View

PROMPT, TOKEN, MIXED = "prompt", "token", "mixed"
HOMES = {"prefill": PROMPT, "decode": TOKEN, "mixed": MIXED}
"""Pool that a machine of this role belongs to."""


class Machine:
    """What has been assigned to one machine."""

    __slots__ = (
        "decodes",
        "home",
        "incoming",
        "outgoing",
        "pending_tokens",
        "pool",
        "prompts",
        "reserved_blocks",
        "view",
    )

    def __init__(self, view: View) -> None:
        self.view = view
        self.home = HOMES[view.role]
        self.pool = self.home
        """`mixed` while lent out."""
        self.pending_tokens: N = 0
        """Prompt tokens to prefill, and one for each request that decodes or is to decode here."""
        self.reserved_blocks: N = 0
        """KV blocks of assigned requests, with their predicted output where they decode here."""
        self.prompts: N = 0
        """Requests to prefill."""
        self.outgoing: N = 0
        """Of those, how many decode elsewhere."""
        self.decodes: N = 0
        """Requests that decode or are to decode here."""
        self.incoming: N = 0
        """Of those, how many are prefilled elsewhere."""

    @property
    def memory_blocks(self) -> N:
        """Blocks that are spoken for, prompts whose KV has not left yet included."""
        return self.reserved_blocks + self.view.held_blocks

    @property
    def foreign(self) -> N:
        """Requests of the kind that is not this machine's own."""
        if self.home == TOKEN:
            return self.prompts
        return self.decodes if self.home == PROMPT else 0


class Placement:
    """The machines of one request, and what it takes on them."""

    __slots__ = ("blocks", "prefilled", "prompt", "prompt_blocks", "prompt_tokens", "token")

    def __init__(self, prompt: Machine, token: Machine, request: Request) -> None:
        self.prompt = prompt
        self.token = token
        self.prompt_tokens = request.target_tokens
        self.prompt_blocks = prompt.view.blocks_for(request.target_tokens)
        self.blocks = blocks_to_reserve(token, request)
        self.prefilled = False


def blocks_to_reserve(machine: Machine, request: Request) -> N:
    """Blocks of the prompt and the predicted output (at least one token)."""
    tokens = request.input_len + max(request.predicted_output_len, 1)
    return machine.view.blocks_for(tokens)


class Pools:
    """The prompt, the token and the mixed pool.

    Args:
        views: all machines; ties go to the first.
        max_pending_tokens: pending tokens that a machine with a queue may have, with the prompt.
        idle_only: a lent machine goes home when it has nothing left, instead of no foreign work.
    """

    def __init__(self, views: Sequence[View], max_pending_tokens: N, idle_only: bool) -> None:
        self.machines = [Machine(view) for view in views]
        self.max_pending_tokens = max_pending_tokens
        self.idle_only = idle_only
        self.placements: dict[N, Placement] = {}

    # -- arrivals ---------------------------------------------------------------------------

    def place(self, request: Request) -> Placement:
        """Pick both machines of an arriving request and enter it in the books."""
        prompt = self._for_prompt(request) or _least_pending(self.machines, TOKEN)
        token = self._for_tokens(request) or _least_memory(self.machines, PROMPT)
        if prompt is None or token is None:
            prompt = token = min([m for m in self.machines if m.view.up], key=_pending_tokens)
        else:
            if prompt is not token and _may_deadlock(prompt, token):
                token = prompt
            if prompt.pool == TOKEN:
                prompt.pool = MIXED
            if token.pool == PROMPT:
                token.pool = MIXED
        return self._enter(prompt, token, request)

    def _enter(self, prompt: Machine, token: Machine, request: Request) -> Placement:
        """Enter a request in the books."""
        placement = Placement(prompt, token, request)
        self.placements[request.id] = placement
        prompt.pending_tokens += placement.prompt_tokens
        prompt.prompts += 1
        token.pending_tokens += 1
        token.decodes += 1
        token.reserved_blocks += placement.blocks
        if prompt is not token:
            prompt.reserved_blocks += placement.prompt_blocks
            prompt.outgoing += 1
            token.incoming += 1
        return placement

    def _for_prompt(self, request: Request) -> Machine | None:
        """Fewest pending tokens in the prompt pool, else in the mixed pool, if its queue is short.

        A queue is long when something waits and the prompt would exceed `max_pending_tokens`.
        """
        for pool in (PROMPT, MIXED):
            best = _least_pending(self.machines, pool)
            if best is not None:
                tokens = best.pending_tokens + request.target_tokens
                if not best.view.num_waiting or tokens <= self.max_pending_tokens:
                    return best
        return None

    def _for_tokens(self, request: Request) -> Machine | None:
        """Least memory spoken for in the token pool, else in the mixed pool, if not filled up."""
        for pool in (TOKEN, MIXED):
            best = _least_memory(self.machines, pool)
            if best is not None:
                blocks = best.memory_blocks + blocks_to_reserve(best, request)
                if blocks < best.view.total_blocks:
                    return best
        return None

    # -- prefill ends and departures --------------------------------------------------------

    def prefilled(self, request: Request) -> View | None:
        """Note that a prompt is done; return where the request decodes, None if unknown.

        If the token machine has failed meanwhile, another one is picked as at arrivals, or the
        request stays on the prompt machine.
        """
        placement = self.placements.get(request.id)
        if placement is None:
            return None
        if not placement.token.view.up:
            prompt = placement.prompt
            token = self._for_tokens(request)
            if token is None or (token is not prompt and _may_deadlock(prompt, token)):
                token = prompt
            self.left(request)
            if token.pool == PROMPT:
                token.pool = MIXED
            placement = self._enter(prompt, token, request)
        self._prompt_done(placement)
        return placement.token.view

    def left(self, request: Request) -> None:
        """Strike a request that has finished, was aborted or was refused."""
        placement = self.placements.pop(request.id, None)
        if placement is None:
            return
        self._prompt_done(placement)
        token = placement.token
        token.pending_tokens -= 1
        token.decodes -= 1
        token.reserved_blocks -= placement.blocks
        if placement.prompt is not token:
            token.incoming -= 1
        self._go_home(token)

    def _prompt_done(self, placement: Placement) -> None:
        if placement.prefilled:  # before; this is a recompute on the decoding machine
            return
        placement.prefilled = True
        prompt = placement.prompt
        prompt.pending_tokens -= placement.prompt_tokens
        prompt.prompts -= 1
        if prompt is not placement.token:
            prompt.outgoing -= 1
            prompt.reserved_blocks -= placement.prompt_blocks  # `held_blocks` from now on
        self._go_home(prompt)

    def _go_home(self, machine: Machine) -> None:
        busy = machine.prompts + machine.decodes if self.idle_only else machine.foreign
        if not busy:
            machine.pool = machine.home


def _may_deadlock(prompt: Machine, token: Machine) -> bool:
    """Whether a hand-over could close a circle of machines full of KV waiting for each other.

    A circle's last edge starts where hand-overs end and ends where hand-overs start.
    """
    return prompt.incoming > 0 and (token.outgoing > 0 or token.view.held_blocks > 0)


def _least_pending(machines: Sequence[Machine], pool: str) -> Machine | None:
    best: Machine | None = None
    for machine in machines:
        if machine.pool != pool or not machine.view.up:
            continue
        if best is None or machine.pending_tokens < best.pending_tokens:
            best = machine
    return best


def _least_memory(machines: Sequence[Machine], pool: str) -> Machine | None:
    best: Machine | None = None
    least = 0
    for machine in machines:
        if machine.pool == pool and machine.view.up:
            blocks = machine.reserved_blocks + machine.view.held_blocks
            if best is None or blocks < least:
                best, least = machine, blocks
    return best


def _pending_tokens(machine: Machine) -> N:
    return machine.pending_tokens
