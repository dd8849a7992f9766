"""The price lists of other simulators, as cost models.

Both are piecewise affine in the KV total of a batch, so they offer pieces (`CostModel.decode`) and
spans are fused exactly; floating-point milliseconds are rounded to integer femtoseconds once a step
or a coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from peers import table

from sim.types import FOREVER, CostModel, DecodePiece, N, Request

FS_PER_MS = 10**12
LAYERS = 48
"""Of CodeLlama-34B."""
ALLREDUCE_EXTRA_MS = 0.02
"""What Vidur's predictor adds to each of the two all-reduces of a layer."""
SEVERAL = 1.1
"""Vidur's factor on an attention kernel that serves more than one request."""
KV_GRAIN: N = 64
TOKEN_GRAIN: N = 8

Key = tuple[N, N]


def fs(ms: float) -> int:
    """Return milliseconds as femtoseconds."""
    return round(ms * FS_PER_MS)


def up(value: N, grain: N) -> N:
    """Round up to a multiple of `grain`."""
    return -(-value // grain) * grain


def _keyed(name: str) -> dict[Key, float]:
    return {(int(a), int(b)): float(ms) for a, b, ms in table(name).itertuples(index=False)}


class VidurCost(CostModel):
    """Vidur's predictor for CodeLlama-34B, tp 2, on A100, from its lookup tables.

    Decode attention is a staircase in the average KV of the batch, the token under way included
    (64 tokens a stair): pieces of slope 0. Chunks of prompts that are partly cached need
    each chunk's own cached tokens, which `step` is not told: the policy shows them before (`Shown`
    in `runs.py`).

    Args:
        entries: replaces entries of the table for chunks behind cached tokens, ms a layer by
            (cached tokens rounded up to 64 and summed, chunk).
    """

    def __init__(self, entries: Mapping[Key, float] | None = None) -> None:
        ops = table("vidur_codellama34b_tp2_a100_ops_ms").set_index("total_tokens_rounded8")
        dense = ops.drop(columns="all_reduce").sum(axis=1)
        dense += 2 * (ops.all_reduce + ALLREDUCE_EXTRA_MS)
        self._dense: dict[N, float] = {int(tokens): float(ms) for tokens, ms in dense.items()}
        self._decode = _keyed("vidur_codellama34b_tp2_a100_attn_decode_ms")
        self._chunked = _keyed("vidur_codellama34b_tp2_a100_attn_prefill_chunked_ms")
        self._chunked |= entries or {}
        whole = table("vidur_codellama34b_tp2_a100_attn_prefill_kv0_ms")
        self._whole: dict[N, float] = dict(zip(whole.prefill_rss_chunk, whole.ms, strict=True))
        self._longest = max(average for _, average in self._decode)
        self._pieces: dict[N, DecodePiece] = {}
        self.chunks: Sequence[tuple[Request, N]] = ()
        """Of the step to be priced, if any is behind cached tokens."""
        self.priced: list[tuple[N, N, N]] = []
        """For each step with chunks: cached tokens rounded and summed, root of the sum of squared
        chunks, KV of the decodes."""

    def dense_ms(self, tokens: N) -> float:
        """Everything but attention, ms a layer."""
        return self._dense[up(tokens, TOKEN_GRAIN)]

    def decode_ms(self, batch: N, average: N) -> float:
        """Decode attention, ms a layer, at an average KV rounded up to 64."""
        if batch == 0:
            return 0.0
        return self._decode[batch, average] * (SEVERAL if batch > 1 else 1.0)

    def chunks_ms(self, count: N, kv: N, root: N) -> float:
        """Attention of chunks, ms a layer."""
        one = self._whole[root] if kv == 0 else self._chunked[kv, root]
        return one * (SEVERAL if count > 1 else 1.0)

    def published(self, key: Key) -> float:
        """Return an entry of the table for chunks behind cached tokens."""
        return self._chunked[key]

    def decode(self, batch: N) -> DecodePiece:
        """Return the first stair: the average (K + B) // B is at most 64 below K = 64 B."""
        if batch not in self._pieces:
            self._pieces[batch] = self._stairs(batch)
        return self._pieces[batch]

    def _stairs(self, batch: N) -> DecodePiece:
        first: DecodePiece | None = None
        for average in range(self._longest, 0, -KV_GRAIN):
            end = FOREVER if first is None else average * batch
            ms = LAYERS * (self.dense_ms(batch) + self.decode_ms(batch, average))
            piece = DecodePiece(fs(ms), 0, end)
            piece.next = first
            first = piece
        assert first is not None
        return first

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step with chunks."""
        cached, squares = 0, quad
        if context != new:
            cached = sum(up(request.prefilled, KV_GRAIN) for request, _ in self.chunks)
            squares = sum(tokens * tokens for _, tokens in self.chunks)
        root = round(math.sqrt(squares))
        self.priced.append((cached, root, kv))
        average = up((kv + batch) // batch, KV_GRAIN) if batch else 0
        attention = self.chunks_ms(chunks, cached, root) + self.decode_ms(batch, average)
        return fs(LAYERS * (self.dense_ms(new + batch) + attention))

    def extrapolates(self, new: N, batch: N) -> bool:
        """Never: a step outside the tables is an error."""
        return False


class SimdistserveCost(CostModel):
    """The fitted lines of `simdistserve` for OPT-13B, tp 1, pp 1, in ms.

    A prefill of S prompt tokens with squares Q, a decode step of n requests with C cached tokens.
    """

    PREFILL = (18.10254647486372, 0.1019122572698738, 7.122264314252114e-06)
    SMALL = (19.934702624895458, 0.0006269356524350583, 0.03850697740828398)
    LARGE = (7.1661889468253595, 0.0005798000403396046, 0.15831096191764046)
    LARGE_FROM: N = 95
    PREFILL_EXTRA, DECODE_EXTRA, TOKEN_EXTRA = 3.0, 2.0, 1e-4

    def __init__(self) -> None:
        self._pieces: dict[N, DecodePiece] = {}

    def decode(self, batch: N) -> DecodePiece:
        """Return the only piece of a batch."""
        if batch not in self._pieces:
            a, b, c = self.SMALL if batch < self.LARGE_FROM else self.LARGE
            base = a + b * batch + c * batch + self.DECODE_EXTRA
            self._pieces[batch] = DecodePiece(fs(base), fs(b + self.TOKEN_EXTRA))
        return self._pieces[batch]

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a batch of whole prompts."""
        a, b, c = self.PREFILL
        return fs(a + b * new + c * quad + self.PREFILL_EXTRA + self.TOKEN_EXTRA * new)

    def extrapolates(self, new: N, batch: N) -> bool:
        """Never: the lines are the definition."""
        return False
