"""One request, as a policy sees it and as the engine tracks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sim.types.units import N

if TYPE_CHECKING:
    from sim.types.view import View

WAITING: Final = 0
PREFILLING: Final = 1
DECODING: Final = 2
PAUSED: Final = 3
SWAPPED: Final = 4
BRIDGED: Final = 5
READY: Final = 6
DONE: Final = 7


class Request:
    """A request. Policies read the first block of fields; only the engine writes.

    `output_len` is deliberately absent: a policy must not know it. What it may know is
    `predicted_output_len` (0 when no predictor is configured).
    """

    __slots__ = (
        "arrival_s",
        "deadline_s",
        "e2e_slo_s",
        "home",
        "id",
        "input_len",
        "predicted_output_len",
        "preemptions",
        "prefilled",
        "prefix",
        "priority",
        "retries",
        "target_tokens",
        "task",
        # engine only
        "aborted",
        "arrival_fs",
        "cached_tokens",
        "decode_instance",
        "emitted",
        "failures",
        "first_token_fs",
        "held_blocks",
        "known_blocks",
        "kv_offset",
        "last_token_fs",
        "prefill_end_fs",
        "prefill_instance",
        "prefill_start_fs",
        "seq",
        "stamp",
        "state",
        "source",
        "steps_at_join",
        "transfer_end_fs",
        "transfer_start_fs",
    )

    def __init__(self, id: N, arrival_fs: int, arrival_s: float, input_len: N) -> None:
        # What a policy may read.
        self.id = id
        """Row of the trace: identity and tie breaker."""
        self.arrival_s = arrival_s
        self.input_len = input_len
        self.target_tokens = input_len
        """Tokens the next prefill has to cover: the prompt, after a recompute emitted ones too."""
        self.prefilled: N = 0
        """Tokens of `target_tokens` whose KV is cached."""
        self.priority: N = 0
        self.task = "online"
        self.deadline_s = -1.0
        """Latest time of the first token by the request's TTFT bound; -1: no bound."""
        self.e2e_slo_s = -1.0
        """End-to-end bound, seconds after arrival; -1: no bound."""
        self.predicted_output_len: N = 0
        self.preemptions: N = 0
        self.retries: N = 0
        """Times the request was put back by an out-of-memory event."""
        self.prefix: tuple[tuple[N, N], ...] = ()
        """What it shares of its prompt, from the front: (node, tokens from the start to its end).
        Requests with an equal node have equal tokens up to the smaller of both ends."""
        self.home: View | None = None
        """The instance that holds it; None in a queue of all, or while none that is up can."""

        # What only the engine uses.
        self.state = WAITING
        self.seq: N = -1
        self.stamp: N = -1
        self.arrival_fs = arrival_fs
        self.prefill_start_fs = -1
        self.prefill_end_fs = -1
        self.first_token_fs = -1
        self.last_token_fs = -1
        self.transfer_start_fs = -1
        self.transfer_end_fs = -1
        self.source: N = -1
        self.prefill_instance: N = -1
        self.decode_instance: N = -1
        self.emitted: N = 0
        self.failures: N = 0
        """Times the request was put back by the failure of an instance."""
        self.held_blocks: N = 0
        self.known_blocks: N = 0
        """Blocks of them, from the front, that other requests can find."""
        self.cached_tokens: N = 0
        """Prompt tokens that were cached when it was first admitted."""
        self.kv_offset: N = 0
        self.steps_at_join: N = 0
        self.aborted = False

    @property
    def blocks(self) -> N:
        """KV blocks held now."""
        if self.state == DECODING and self.home is not None:
            return self.home.blocks_of(self)
        return self.held_blocks
