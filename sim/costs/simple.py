"""A cost model with five numbers, for tests, theory and examples."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from sim.types import CostModel, DecodePiece, N, to_fs


@mypyc_attr(allow_interpreted_subclasses=True)
class AffineCost(CostModel):
    """Steps that are affine in what they hold, with exact integer coefficients.

    A step with n prompt tokens, B decodes and K cached tokens lasts

        prefill_base + prefill_token*n   (when it holds a chunk)
      + decode_base + decode_seq*B + decode_kv*K   (when it holds decodes)

    and at least one femtosecond; a request that verifies K drafted tokens counts K+1 times in B.
    Each coefficient is rounded to femtoseconds once, so every sum is exact.
    `AffineCost(decode_base_s=0.02)` is a constant decode step with free prefill.

    Args:
        prefill_base_s: seconds of any step that holds a chunk.
        prefill_token_s: seconds per new prompt token.
        decode_base_s: seconds of any step that holds decodes.
        decode_seq_s: seconds per decoding request.
        decode_kv_s: seconds per cached token of the decoding requests.
    """

    def __init__(
        self,
        prefill_base_s: float = 0.0,
        prefill_token_s: float = 0.0,
        decode_base_s: float = 0.0,
        decode_seq_s: float = 0.0,
        decode_kv_s: float = 0.0,
    ) -> None:
        self.prefill_base_fs = to_fs(prefill_base_s)
        self.prefill_token_fs = to_fs(prefill_token_s)
        self.decode_base_fs = to_fs(decode_base_s)
        self.decode_seq_fs = to_fs(decode_seq_s)
        self.decode_kv_fs = to_fs(decode_kv_s)
        self._pieces: dict[N, DecodePiece] = {}

    def verify(self, batch: N, drafts: N) -> DecodePiece:
        """Return the piece of as many requests as there are rows."""
        return self.decode(batch * (drafts + 1))

    def verify_step(
        self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N, drafts: N
    ) -> int:
        """Price a step with as many decodes as there are rows."""
        return self.step(chunks, new, context, quad, batch * (drafts + 1), kv)

    def decode(self, batch: N) -> DecodePiece:
        """Return the only piece of a batch."""
        piece = self._pieces.get(batch)
        if piece is None:
            base_fs = self.decode_base_fs + self.decode_seq_fs * batch
            piece = DecodePiece(max(1, base_fs), self.decode_kv_fs)
            self._pieces[batch] = piece
        return piece

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step; `context` and `quad` do not matter."""
        total_fs = self.prefill_base_fs + self.prefill_token_fs * new if chunks else 0
        if batch:
            piece = self.decode(batch)
            total_fs += piece.base_fs + piece.slope_fs * kv
        return max(1, total_fs)

    def extrapolates(self, new: N, batch: N) -> bool:
        """Never: the model is its own definition."""
        return False
