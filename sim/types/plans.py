"""What a policy can ask an instance to do next (design section 4).

A plan names changes, not the batch. One that preempts, pauses, resumes, swaps or holds chunks runs
one step and is asked again; only a plan that changes nothing is fused over many steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.types.request import Request
from sim.types.units import N


class Plan:
    """Base of all plans."""

    __slots__ = ()


class Prefill(Plan):
    """Whole prompts in one step, no decodes beside them.

    Args:
        requests: waiting requests, in the order they are admitted.
        padded: whether rows are padded to the longest prompt (where the engine leaves it to the
            policy).
    """

    __slots__ = ("padded", "requests")

    def __init__(self, requests: Sequence[Request], padded: bool = False) -> None:
        self.requests = requests
        self.padded = padded


class Mixed(Plan):
    """Prompt chunks and, with `decode`, one token for every decoding request, in one step.

    Args:
        chunks: pairs (request, new tokens); waiting requests are admitted in this order.
        decode: whether the decoding requests take part.
        preempt: requests preempted before the step.
        move: waiting requests sent to another instance: pairs (request, instance id).
    """

    __slots__ = ("chunks", "decode", "move", "preempt")

    def __init__(
        self,
        chunks: Sequence[tuple[Request, N]],
        decode: bool = True,
        preempt: Sequence[Preemption] = (),
        move: Sequence[tuple[Request, N]] = (),
    ) -> None:
        self.chunks = chunks
        self.decode = decode
        self.preempt = preempt
        self.move = move


class Decode(Plan):
    """Decode steps of the running batch, after the named changes to it.

    Args:
        max_steps: at most so many steps before the policy is asked again.
        until_s: ask again at the first step end at or after this time.
        pause: decoding requests that keep their KV and sit out.
        resume: paused requests that rejoin.
        swap_in: swapped requests whose blocks are copied back.
        preempt: requests preempted before the step.
        admit: requests whose KV has been transferred here and that join the batch.
        move: waiting requests sent to another instance: pairs (request, instance id).
        at_once: the next plan would be `Decode()`, unless more has become ready by then: so the
            batch decodes without asking again. Only beside `admit`.
    """

    __slots__ = (
        "admit",
        "at_once",
        "bounded",
        "changes",
        "max_steps",
        "move",
        "pause",
        "preempt",
        "resume",
        "swap_in",
        "until_s",
    )

    def __init__(
        self,
        max_steps: N | None = None,
        until_s: float | None = None,
        pause: Sequence[Request] = (),
        resume: Sequence[Request] = (),
        swap_in: Sequence[Request] = (),
        preempt: Sequence[Preemption] = (),
        admit: Sequence[Request] = (),
        move: Sequence[tuple[Request, N]] = (),
        at_once: bool = False,
    ) -> None:
        self.admit = admit
        self.at_once = at_once
        self.move = move
        self.max_steps = max_steps
        self.until_s = until_s
        self.pause = pause
        self.resume = resume
        self.swap_in = swap_in
        self.preempt = preempt
        self.changes = bool(pause or resume or swap_in or preempt or move)
        """Whether anything but admissions changes the batch."""
        self.bounded = not (max_steps is None and until_s is None)
        """Whether it names an end, of steps or of time."""


class RunToCompletion(Plan):
    """A static batch: prefill, then decode until the longest output is done.

    Args:
        requests: waiting requests.
        padded: whether prompts are padded to the longest.
        release: `together` (results leave when the batch ends) or `each` (a finished row's result
            leaves at once).
        finished_rows: `compute` (a finished row is charged until the batch ends) or `skip`.
        max_new_tokens: generation stops after so many tokens, whatever is missing; None: never.
    """

    __slots__ = ("finished_rows", "max_new_tokens", "padded", "release", "requests")

    def __init__(
        self,
        requests: Sequence[Request],
        padded: bool = True,
        release: str = "together",
        finished_rows: str = "compute",
        max_new_tokens: N | None = None,
    ) -> None:
        self.requests = requests
        self.padded = padded
        self.release = release
        self.finished_rows = finished_rows
        self.max_new_tokens = max_new_tokens


class Wait(Plan):
    """Do nothing until `until_s`; any event on the instance wakes it earlier."""

    __slots__ = ("until_s",)

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s


class Preemption:
    """A running request to evict, and how.

    Args:
        request: the victim.
        swap: copy its KV blocks to host memory (True) or drop and recompute them (False). A full
            swap space falls back to recompute.
    """

    __slots__ = ("request", "swap")

    def __init__(self, request: Request, swap: bool = False) -> None:
        self.request = request
        self.swap = swap
