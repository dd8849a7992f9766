"""The interface between the engine and a cost model: integers in, femtoseconds out."""

from __future__ import annotations

import abc
from typing import Final

from mypy_extensions import mypyc_attr

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


@mypyc_attr(allow_interpreted_subclasses=True)
class CostModel(abc.ABC):
    """How long a step takes on one instance (`spec/costs.md` section 1)."""

    @abc.abstractmethod
    def decode(self, batch: N) -> DecodePiece:
        """Return the first piece for a batch of `batch` decoding requests (memoised)."""

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

    @abc.abstractmethod
    def extrapolates(self, new: N, batch: N) -> bool:
        """Whether a step with `new` chunk tokens and `batch` decodes leaves the fitted range."""
