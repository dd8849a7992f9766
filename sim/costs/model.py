"""`StepCost`: a profile turned into integers, priced in a few hundred nanoseconds."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from sim.costs.catalogue import DTYPE_BYTES, Model
from sim.costs.profile import AttentionRow, HostTerm, Profile, Terms
from sim.costs.terms import Curve, DecodeAttention, DecodeRows, Host, PrefillAttention
from sim.types import FOREVER, CostModel, DecodePiece, DecodeTerms, N, to_fs

FS_PER_MS: Final = 10**12

NO_HOST = HostTerm()
"""No host time on top of a profile's."""


class StepCost(CostModel):
    """Latency of one step by the equation in `sim.costs.terms`, in integer femtoseconds.

    Steps without a chunk always go through the affine pieces of `decode`, so a fused span and its
    single steps agree exactly; a floor (`min_step_s`) and the end of the fitted range are further
    pieces. Everything that depends on one count only (dense layers and all-reduce on the tokens,
    lm_head on the rows) is tabulated on first use.

    A profile fitted on whole forwards (DistServe) gives two dense curves: `dense` for steps with
    chunks, `dense_decode` for the others. A step that mixes both is then priced as the chunks'
    curve at T = sum(l) + B, plus the chunks' attention, plus gamma times the decodes' attention.

    Fitted range, held-out error, hardware and software are in the profile.

    Args:
        profile: the coefficients.
        model: the model they were fitted for (width for the all-reduce, number of layers).
        min_step_s: seconds below which no step ends, whatever it holds.
        host: host time on top of the profile's.
    """

    def __init__(
        self, profile: Profile, model: Model, min_step_s: float = 0.0, host: HostTerm = NO_HOST
    ) -> None:
        terms = profile.terms
        layers = model.layers if terms.layers is None else terms.layers
        self._dense = terms.dense.curve()
        decode_dense = terms.dense_decode
        self._dense_decode = self._dense if decode_dense is None else decode_dense.curve()
        self._lm_head = terms.lm_head.curve()
        self._allreduce = _allreduce_curve(terms, model, profile.dtype, profile.tp)
        self._host = _host(terms.host, host)
        self._host_token_fs = self._host.token
        self._prefill = _prefill(terms, layers)
        self._rows = _decode_rows(terms.decode_attention, layers)
        self._mixed_rows = _decode_rows(terms.decode_attention, layers * terms.gamma)
        self._launch_fs = _fs(terms.launch_ms)
        self._floor_fs = max(1, to_fs(min_step_s), _fs(terms.host.min_step_ms))
        fitted = profile.fitted_range
        self._tokens_low, self._tokens_high = fitted.step_tokens or (0, FOREVER)
        self._batch_low, self._batch_high = fitted.batch or (0, FOREVER)
        self._kv_high: N = FOREVER if fitted.kv_tokens is None else fitted.kv_tokens[1]
        self._pieces: dict[N, DecodePiece] = {}
        self._verifying: dict[tuple[N, N], DecodePiece] = {}
        self._token_fs: dict[N, int] = {}
        self._row_fs: dict[N, int] = {}
        self._mixed: dict[N, DecodeAttention] = {}

    def decode(self, batch: N) -> DecodePiece:
        """Return the first piece for a batch of `batch` decoding requests (memoised)."""
        piece = self._pieces.get(batch)
        if piece is None:
            piece = self._pieces[batch] = self._build_pieces(batch, batch)
        return piece

    def verify(self, batch: N, drafts: N) -> DecodePiece:
        """Return the first piece of a step that verifies `drafts` tokens a request (memoised).

        `drafts + 1` rows a request pass dense layers, all-reduce and lm_head; the cached keys and
        values are read once for all of them, so attention costs what it costs a decode (keys of
        the drafted tokens themselves are not charged); the host handles `batch` sequences.
        """
        if not drafts:
            return self.decode(batch)
        piece = self._verifying.get((batch, drafts))
        if piece is None:
            piece = self._build_pieces(batch, batch * (drafts + 1))
            self._verifying[batch, drafts] = piece
        return piece

    def decode_terms(self, batch: N) -> DecodeTerms:
        """Return what `decode` adds up."""
        row = self._rows.row(batch)
        return DecodeTerms(
            self._decode_base(batch, batch, row), row.kv, self._host_token_fs, self._floor_fs
        )

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step, in femtoseconds (arguments: `CostModel.step`)."""
        if chunks == 0:
            return self.decode(batch).at(kv)
        rows = chunks + batch
        tokens = new + batch
        token_fs = self._token_fs.get(tokens) or self._dense_fs(tokens)
        row_fs = self._row_fs.get(rows)
        if row_fs is None:
            row_fs = _fs(self._lm_head.at(rows)) + self._host.of(rows, True)
            self._row_fs[rows] = row_fs
        total = token_fs + row_fs + self._host_token_fs * (new + kv)
        total += self._prefill.of(chunks, context, new, quad)
        if batch:
            mixed = self._mixed.get(batch)
            if mixed is None:
                mixed = self._mixed[batch] = self._mixed_rows.row(batch)
            total += mixed.base + mixed.seq * batch + mixed.kv * kv
        if self._launch_fs:
            total = max(total, self._launch_fs + self._host.of(rows, True, new + kv))
        return total if total > self._floor_fs else self._floor_fs

    def verify_step(
        self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N, drafts: N
    ) -> int:
        """Price a step in which `batch` requests verify `drafts` tokens each beside chunks."""
        if not drafts:
            return self.step(chunks, new, context, quad, batch, kv)
        if chunks == 0:
            return self.verify(batch, drafts).at(kv)
        tokens = new + batch * (drafts + 1)
        rows = chunks + batch * (drafts + 1)
        total = self._token_fs.get(tokens) or self._dense_fs(tokens)
        host = self._host.of(chunks + batch, True, new + kv)
        total += _fs(self._lm_head.at(rows)) + host
        total += self._prefill.of(chunks, context, new, quad)
        total += self._mixed_rows.row(batch).of(batch, kv)
        total = max(total, self._launch_fs + host)
        return total if total > self._floor_fs else self._floor_fs

    def _dense_fs(self, tokens: N) -> int:
        """Price what depends on a step's tokens alone, and remember it."""
        price = self._token_fs[tokens] = _fs(self._dense.at(tokens) + self._allreduce.at(tokens))
        return price

    def extrapolates(self, new: N, batch: N) -> bool:
        """Whether a step with `new` chunk tokens and `batch` decodes leaves the fitted range."""
        if not self._tokens_low <= new + batch <= self._tokens_high:
            return True
        return batch > 0 and not self._batch_low <= batch <= self._batch_high

    def _decode_base(self, batch: N, rows: N, row: DecodeAttention) -> int:
        """Price everything that the cached tokens do not change."""
        by_count_ms = self._dense_decode.at(rows) + self._allreduce.at(rows)
        by_count_ms += self._lm_head.at(rows)
        return _fs(by_count_ms) + self._host.of(batch, False) + row.of(batch, 0)

    def _build_pieces(self, batch: N, rows: N) -> DecodePiece:
        """Chain the floor, the fitted line and its continuation beyond the fitted range.

        `batch` requests bring `rows` query rows: one each, or with drafted tokens more.
        """
        row = self._rows.row(batch)
        base = self._decode_base(batch, rows, row)
        slope = row.kv + self._host_token_fs
        rise_at = _crossing(base, slope, self._floor_fs)
        known_to = 0 if self.extrapolates(rows - batch, batch) else min(FOREVER, self._kv_high + 1)
        starts = sorted({0, rise_at, known_to} - {FOREVER})
        pieces = []
        for start, end in zip(starts, [*starts[1:], FOREVER], strict=True):
            flat = start < rise_at
            piece = DecodePiece(self._floor_fs if flat else base, 0 if flat else slope, end)
            piece.extrapolated = start >= known_to
            pieces.append(piece)
        for piece, later in pairwise(pieces):
            piece.next = later
        return pieces[0]


def _crossing(base: int, slope: int, floor: int) -> N:
    """Return the smallest K >= 0 at which `base + slope*K` reaches the floor."""
    if base >= floor:
        return 0
    return FOREVER if slope == 0 else -((base - floor) // slope)


def _fs(ms: float) -> int:
    return round(ms * FS_PER_MS)


def _host(host: HostTerm, extra: HostTerm) -> Host:
    return Host(
        _fs(host.step_ms + extra.step_ms),
        _fs(host.prefill_step_ms + extra.prefill_step_ms),
        _fs(host.seq_ms + extra.seq_ms),
        _fs(host.token_ms + extra.token_ms),
    )


def _prefill(terms: Terms, layers: int) -> PrefillAttention:
    pre = terms.prefill_attention
    return PrefillAttention(
        read_base=_fs(layers * pre.read_base_ms),
        read_token=_fs(layers * pre.read_token_ms),
        base=_fs(layers * pre.base_ms),
        chunk=_fs(layers * pre.chunk_ms),
        token=_fs(layers * pre.token_ms),
        quad=_fs(layers * pre.quad_ms),
    )


def _decode_rows(rows: tuple[AttentionRow, ...], factor: float) -> DecodeRows:
    return DecodeRows(
        [row.from_batch for row in rows],
        [
            DecodeAttention(
                _fs(factor * row.base_ms), _fs(factor * row.seq_ms), _fs(factor * row.kv_token_ms)
            )
            for row in rows
        ],
    )


def _allreduce_curve(terms: Terms, model: Model, dtype: str, tp: int) -> Curve:
    """Return the all-reduces of a whole step, in milliseconds over its tokens."""
    if terms.allreduce is None or tp == 1:
        return Curve([0], [0.0], [0.0])
    message = terms.allreduce.curve()
    token_bytes = model.hidden * DTYPE_BYTES[dtype]
    count = 2 * model.layers
    return Curve(
        [start / token_bytes for start in message.starts],
        [count * base for base in message.bases],
        [count * slope * token_bytes for slope in message.slopes],
    )
