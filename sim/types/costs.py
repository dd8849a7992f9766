"""The interface between the engine and a cost model: integers in, femtoseconds out."""

from __future__ import annotations

import abc
from typing import Final

from mypy_extensions import mypyc_attr

from sim.types.errors import BadInput
from sim.types.units import N

FOREVER: Final = 1 << 61
"""A KV size no run reaches: the end of the last piece."""


class DecodePiece:
    """Cost of one decode step at a fixed batch size while the KV total is below `kv_end`.

    A step that finds K cached tokens lasts `base_fs + slope_fs * K` femtoseconds. From `kv_end`
    on, `next` holds. Affine pieces are what makes a span of n steps closed-form:
    `n*a + g*n*(n-1)/2` with `a = base_fs + slope_fs*K` and `g = slope_fs*batch`.
    """

    __slots__ = ("base_fs", "extrapolated", "kv_end", "next", "slope_fs")

    def __init__(self, base_fs: int, slope_fs: int, kv_end: N = FOREVER) -> None:
        self.base_fs = base_fs
        self.slope_fs = slope_fs
        self.kv_end = kv_end
        self.next: DecodePiece | None = None
        self.extrapolated = False
        """Whether steps of this piece lie outside the range the profile was fitted on."""

    def at(self, kv: N) -> int:
        """Return what a step costs that finds `kv` cached tokens, in femtoseconds."""
        piece = self
        while piece.next is not None and kv >= piece.kv_end:
            piece = piece.next
        return piece.base_fs + piece.slope_fs * kv


class DecodeTerms:
    """A decode step of a fixed batch, taken apart.

    It lasts `fixed_fs + attention_fs*K + other_fs*K`, and at least `floor_fs`: K cached tokens are
    read by the attention, and handled otherwise.
    """

    __slots__ = ("attention_fs", "fixed_fs", "floor_fs", "other_fs")

    def __init__(
        self, fixed_fs: int, attention_fs: int, other_fs: int = 0, floor_fs: int = 1
    ) -> None:
        self.fixed_fs = fixed_fs
        self.attention_fs = attention_fs
        self.other_fs = other_fs
        self.floor_fs = floor_fs


@mypyc_attr(allow_interpreted_subclasses=True)
class CostModel(abc.ABC):
    """How long a step takes on one instance (`spec/costs.md` section 1)."""

    @abc.abstractmethod
    def decode(self, batch: N) -> DecodePiece:
        """Return the first piece for a batch of `batch` decoding requests (memoised)."""

    def decode_terms(self, batch: N) -> DecodeTerms:
        """Return what `decode` adds up, for engines whose attention does not read every token once.

        A model of one piece needs no method of its own: its slope is the attention.

        Raises:
            BadInput: there are several pieces, and only their sums are known.
        """
        piece = self.decode(batch)
        if piece.next is not None:
            raise BadInput(
                f"cost model {type(self).__name__} does not say what its decode pieces add up to "
                "(`decode_terms`); valid: attention: fitted or balanced, no cascade_attention"
            )
        return DecodeTerms(piece.base_fs, piece.slope_fs)

    @abc.abstractmethod
    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step that holds prompt chunks, in femtoseconds.

        Args:
            chunks: number of chunks n >= 1; padded engines give every row the longest length.
            new: sum of new tokens l over the chunks.
            context: sum of l + p, p being the tokens already cached.
            quad: sum of l * (l + 2p).
            batch: decoding requests in the same step.
            kv: KV tokens those hold before the step.
        """

    def verify(self, batch: N, drafts: N) -> DecodePiece:
        """Return the first piece of a step that verifies drafted tokens (memoised).

        Every request of the batch brings `drafts` drafted tokens, so `drafts + 1` query rows; the
        time to draft them is included. Without drafts this is `decode(batch)`, the same object.

        Raises:
            BadInput: the model cannot price drafts.
        """
        if drafts:
            raise _no_verification(self)
        return self.decode(batch)

    def verify_step(
        self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N, drafts: N
    ) -> int:
        """Price a step that holds prompt chunks beside requests that verify drafts: see `step`.

        Raises:
            BadInput: the model cannot price drafts.
        """
        if drafts:
            raise _no_verification(self)
        return self.step(chunks, new, context, quad, batch, kv)

    def phases(self, batch: N, drafts: N, kv: N) -> tuple[int, int]:
        """Return what verifying and what drafting takes of a round, in femtoseconds."""
        return self.verify(batch, drafts).at(kv), 0

    @abc.abstractmethod
    def extrapolates(self, new: N, batch: N) -> bool:
        """Whether a step with `new` chunk tokens and `batch` decodes leaves the fitted range."""


def _no_verification(cost: CostModel) -> BadInput:
    return BadInput(
        f"cost model {type(cost).__name__} does not price the verification of drafted tokens "
        "(`verify`); valid: no speculation"
    )
