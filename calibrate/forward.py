"""Fit the step form to whole forward passes, phase by phase (`spec/costs.md`, row "fitting").

1. host: wall time minus device time, over the rows of the step and whether it holds a chunk;
2. g(T) and the two lines of prefill attention, by alternating assignment; decode attention by
   non-negative least squares. Where prefill and decode steps share g, both kinds of steps fit it;
   else (`separate`: decode steps have other kernels, or no launches to wait for) decode steps have
   a curve of their own over the batch;
3. gamma last, on mixed steps, all else frozen.

What whole forwards cannot tell apart is lumped: `LUMPED` says what into what. The coefficients
cover all layers (`layers: 1`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibrate.samples import Sample
from calibrate.solve import (
    Floats,
    Points,
    choose_knots,
    decode_bands,
    fit_gamma,
    fit_lines,
    ramps,
    solve,
    through,
)
from sim.costs.profile import (
    GAMMA_WITHOUT_FIT,
    AttentionRow,
    HostTerm,
    PrefillAttentionTerm,
    Terms,
    TokenCurve,
)

Dense = Literal["knots", "table"]

MOST_KNOTS = 8
"""Knots of g: 5 to 8 follow its waves to about 3 % (`spec/costs.md`)."""

FEW_BANDS = (1, 2)
MANY_BANDS = (1, 2, 8, 32, 128)
"""Starts of the bands of batch sizes that have their own price of a cached token."""

HOST_SHARE = 0.5
"""Share of the squared gaps between wall and device time that the host term must explain, points
missed by far more than most counting less. Below it the gaps are noise (a CPU: the host is the
device) and the fit takes the wall time as a whole."""

ROUNDS = 3
HUBER = 3.0
LEAST_BOUND = 0.02
"""Rounds of a fit. A point missed by more than this many times the median error (two standard
deviations of normal noise), and by more than this share, counts less."""

LEAST_GAP_BOUND = 0.002
"""Likewise for the host's part: by this share of the whole step."""

REACH = 0.25
"""A band must hold points with this share of the cached tokens that its batches can have. Else its
price of a cached token would come from short contexts, where noise hides it, for long ones: with
batch 1 measured at 1 and 16 cached tokens only, 2,047 were priced 14 times too high."""

SHOWN_AT = 1.05
"""A host cost of prefill steps alone is kept when leaving it out makes the squares this much
larger; a least time of steps with chunks, the errors."""

LAUNCHED_TOKENS = 32
"""Prompts of so few tokens in all show that least time, where there is one."""

NEAR_LAUNCH = 1.1
"""Steps of up to this many times the least time may last just that."""

LUMPED = (
    "Whole forward passes cannot separate everything, so the constants of lm_head and of both "
    "attentions and prefill attention per new token are inside the dense curve, lm_head per row "
    "inside chunk_ms and seq_ms"
)


@dataclass(frozen=True)
class Form:
    """What is chosen rather than fitted.

    Attributes:
        separate: decode steps have a dense curve of their own (`dense_decode`).
        bands: starts of the bands of batch sizes in decode attention.
        dense: at most `MOST_KNOTS` knots, or a knot at every measured count of tokens (`table`).
    """

    separate: bool
    bands: tuple[int, ...] = FEW_BANDS
    dense: Dense = "knots"


@dataclass(frozen=True)
class Rows:
    """Samples as columns.

    `y` is the time to be explained, milliseconds; `trust` in (0, 1] says how much a point counts.
    """

    chunks: Floats
    new: Floats
    context: Floats
    quad: Floats
    batch: Floats
    kv: Floats
    tokens: Floats
    y: Floats
    trust: Floats

    @classmethod
    def of(cls, samples: Sequence[Sample], by_device: bool) -> Rows:
        """Take all samples with equal trust; `y` is device time, or wall time."""
        return cls(
            chunks=_column(samples, "chunks"),
            new=_column(samples, "new_tokens"),
            context=_column(samples, "context_tokens"),
            quad=_column(samples, "quad_tokens"),
            batch=_column(samples, "batch"),
            kv=_column(samples, "kv_tokens"),
            tokens=_column(samples, "step_tokens"),
            y=_column(samples, "device_ms" if by_device else "wall_ms"),
            trust=np.ones(len(samples)),
        )

    @property
    def weights(self) -> Floats:
        """Weights of the residuals in a relative fit."""
        weights: Floats = np.sqrt(self.trust) / self.y
        return weights

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        """Return some of the rows."""
        return Rows(*(getattr(self, field.name)[chosen] for field in fields(self)))


def fit_terms(samples: Sequence[Sample], form: Form) -> Terms:
    """Fit all terms to the samples of one path (padded or padding-free), which must be `ok`.

    A least time of steps with chunks is kept when the shortest of them last longer than decodes,
    which read the same weights, and leaving it out makes the errors larger.
    """
    host = fit_host(samples)
    rows = Rows.of(samples, by_device=host is not None)
    terms = _fit_rounds(rows, form, 0.0)
    launch = _shortest_with_chunks(rows)
    if host is not None and launch > NEAR_LAUNCH * rows.y[rows.chunks == 0].min():
        bound = _fit_rounds(rows, form, launch)
        without, within = (float(np.sum(_missed(found, rows))) for found in (terms, bound))
        if without > SHOWN_AT * within:
            terms = bound
    return terms.model_copy(update={"host": host or HostTerm()})


def _shortest_with_chunks(rows: Rows) -> float:
    """Return how long steps of a few prompt tokens last, milliseconds; 0: none was measured."""
    few = (rows.chunks > 0) & (rows.batch == 0) & (rows.tokens <= LAUNCHED_TOKENS)
    return float(np.median(rows.y[few])) if few.any() else 0.0


def _fit_rounds(rows: Rows, form: Form, launch: float) -> Terms:
    """Fit all terms but the host's, given the least time of steps with chunks, milliseconds.

    Fitted `ROUNDS` times; points that the last fit missed by far more than most count less, so
    that a few disturbed measurements do not bend the curves (Huber's weights). Steps that last the
    least time say nothing of the other terms.
    """
    for _ in range(ROUNDS):
        told = (rows.chunks == 0) | (rows.y > NEAR_LAUNCH * launch)
        terms = _fit_once(rows.where(told), form)
        hidden = ~told & (_predicted(terms, rows) < launch)
        if hidden.any():
            launch = float(np.median(rows.y[hidden]))
        terms = terms.model_copy(update={"launch_ms": _digits(launch)})
        rows = replace(rows, trust=_trust(_missed(terms, rows), LEAST_BOUND))
    return terms


def _missed(terms: Terms, rows: Rows) -> Floats:
    """Return by how much each step is missed, a fraction of it."""
    missed: Floats = np.abs(_predicted(terms, rows) / rows.y - 1.0)
    return missed


def _trust(missed: Floats, least: float) -> Floats:
    """Return how much points count (Huber), by how much the last fit missed them."""
    bound = max(HUBER * float(np.median(missed)), least)
    trust: Floats = bound / np.maximum(missed, bound)
    return trust


def _fit_once(every: Rows, form: Form) -> Terms:
    """Fit all terms but the host's."""
    decode = every.where(every.chunks == 0)
    mixed = every.where((every.chunks > 0) & (every.batch > 0))
    own: Points | None = None
    if form.separate:
        prefill = every.where(every.batch == 0)
        dense, attention, _ = _fit_dense(prefill, np.empty((len(prefill.y), 0)), form)
        own, rows = _fit_own_decode(decode, form)
    else:
        both = every.where((every.chunks == 0) | (every.batch == 0))
        starts = _bands(decode, form)
        decodes = np.column_stack([both.batch, _by_band(both, starts)])
        dense, attention, prices = _fit_dense(both, decodes, form)
        rows = _attention_rows(starts, prices[1:], seq=prices[0])
    extra = mixed.y - _curve(dense, mixed.tokens) - _prefill_price(attention, mixed)
    if own is None:
        gamma = _fit_shared_gamma(mixed, extra, rows)
    else:
        gamma, own, rows = _fit_separate_gamma(mixed, extra, own, rows)
    return Terms(
        layers=1,
        dense=TokenCurve(knots_tokens_ms=_rounded(dense)),
        dense_decode=None if own is None else TokenCurve(knots_tokens_ms=_rounded(own)),
        prefill_attention=PrefillAttentionTerm(
            **{name: _digits(value) for name, value in attention.model_dump().items()}
        ),
        decode_attention=tuple(_rounded_row(row) for row in rows),
        gamma=_digits(gamma),
    )


def _predicted(terms: Terms, rows: Rows) -> Floats:
    """Return the price of steps without their host time, as `StepCost` has it."""
    alone = rows.chunks == 0
    own = terms.dense if terms.dense_decode is None else terms.dense_decode
    dense = np.where(alone, _at(own, rows.tokens), _at(terms.dense, rows.tokens))
    prefill = np.where(alone, 0.0, _prefill_price(terms.prefill_attention, rows))
    decode = _decode_price(terms.decode_attention, rows) * np.where(alone, 1.0, terms.gamma)
    price: Floats = dense + prefill + np.where(rows.batch > 0, decode, 0.0)
    least = np.where(alone, 0.0, terms.launch_ms)
    return np.maximum(price, least)


def fit_host(samples: Sequence[Sample]) -> HostTerm | None:
    """Fit `step + seq*S + prefill_step` to wall minus device time; None where it does not show.

    `ROUNDS` times, as `fit_terms` does.
    """
    wall = _column(samples, "wall_ms")
    gap = wall - _column(samples, "device_ms")
    sequences = _column(samples, "chunks") + _column(samples, "batch")
    chunk = (_column(samples, "chunks") > 0).astype(float)
    design = np.column_stack([np.ones_like(gap), sequences, chunk])
    trust = np.ones_like(gap)
    for _ in range(ROUNDS):
        weights = np.sqrt(trust) / wall
        fits = [solve(design[:, :columns], gap, weights) for columns in (2, 3)]
        left = [design[:, : len(x)] @ x - gap for x in fits]
        plain, full = (float(np.sum((missed * weights) ** 2)) for missed in left)
        shown = plain > SHOWN_AT * full
        total = float(np.sum((gap * weights) ** 2))
        trust = _trust(np.abs(left[shown]) / wall, LEAST_GAP_BOUND)
    if total == 0.0 or (full if shown else plain) > (1.0 - HOST_SHARE) * total:
        return None
    step, seq, prefill = (_digits(float(value)) for value in (*fits[shown], 0.0)[:3])
    return HostTerm(step_ms=step, seq_ms=seq, prefill_step_ms=prefill)


def _fit_dense(
    rows: Rows, decodes: Floats, form: Form
) -> tuple[Points, PrefillAttentionTerm, list[float]]:
    """Return g, the attention of prompts, and the prices of the columns `decodes`."""
    beside = np.column_stack([decodes, rows.chunks, rows.context, rows.quad])
    knots = choose_knots(rows.tokens, rows.y, _most(form), rows.weights, beside)
    common = np.hstack([ramps(rows.tokens, knots), decodes])
    in_dense = np.zeros_like(rows.new)  # a price per new token is part of g
    lines = fit_lines(rows.chunks, rows.context, in_dense, rows.quad, rows.y, rows.weights, common)
    dense = through(knots, lines.common[: len(knots)])
    return dense, lines.term, lines.common[len(knots) :].tolist()


def _fit_own_decode(rows: Rows, form: Form) -> tuple[Points, tuple[AttentionRow, ...]]:
    """Return a curve over the batch, and per band the price of a cached token alone."""
    starts = _bands(rows, form)
    cached = _by_band(rows, starts)
    weights = rows.weights
    knots = choose_knots(rows.batch, rows.y, _most(form), weights, cached)
    x = solve(np.hstack([ramps(rows.batch, knots), cached]), rows.y, weights)
    own = through(knots, x[: len(knots)])
    return own, _attention_rows(starts, x[len(knots) :].tolist())


def _bands(rows: Rows, form: Form) -> list[int]:
    """Return where the bands of decode steps start; one that is not told joins its neighbour."""
    starts = decode_bands(rows.batch, form.bands)
    at = 0
    while len(starts) > 1 and at < len(starts):
        if _is_told(rows, *[*starts, np.inf][at : at + 2]):
            at += 1
        else:
            del starts[max(at, 1)]
            at = max(at - 1, 0)
    return starts


def _is_told(rows: Rows, start: float, end: float) -> bool:
    """Whether the decode steps of a band reach far enough to say what a cached token costs."""
    inside = (rows.batch >= start) & (rows.batch < end)
    longest = float(np.max(rows.kv / rows.batch))
    possible = min(float(np.max(rows.kv)), longest * float(np.max(rows.batch[inside])))
    return float(np.max(rows.kv[inside])) >= REACH * possible


def _by_band(rows: Rows, starts: Sequence[int]) -> Floats:
    """Return a column of cached tokens for each band of batch sizes."""
    band = np.searchsorted(starts, rows.batch, side="right") - 1
    columns: Floats = (band[:, None] == np.arange(len(starts))) * rows.kv[:, None]
    return columns


def _attention_rows(
    starts: Sequence[int], prices: Sequence[float], seq: float = 0.0
) -> tuple[AttentionRow, ...]:
    return tuple(
        AttentionRow(from_batch=start, seq_ms=seq, kv_token_ms=price)
        for start, price in zip(starts, prices, strict=True)
    )


def _fit_separate_gamma(
    mixed: Rows, extra: Floats, own: Points, rows: tuple[AttentionRow, ...]
) -> tuple[float, Points, tuple[AttentionRow, ...]]:
    """Fit gamma, and how much of a decode step's own curve is attention.

    A constant and a price per decode can be moved from `dense_decode` to the attention rows without
    changing any decode step. Mixed steps pay only what is in the rows, so they say how much it is.
    """
    if not len(mixed.y):
        return GAMMA_WITHOUT_FIT, own, rows
    price = _decode_price(rows, mixed)
    weights = mixed.weights
    counts = np.column_stack([np.ones_like(price), mixed.batch])
    base, seq, gamma = solve(np.column_stack([counts, price]), extra, weights).tolist()
    if gamma < 1.0:
        gamma = 1.0
        base, seq = solve(counts, extra - price, weights).tolist()
    base, seq = _digits(base / gamma), _digits(seq / gamma)
    moved = tuple((batch, ms - base - seq * batch) for batch, ms in own)
    rows = tuple(row.model_copy(update={"base_ms": base, "seq_ms": seq}) for row in rows)
    return gamma, moved, rows


def _fit_shared_gamma(mixed: Rows, extra: Floats, rows: tuple[AttentionRow, ...]) -> float:
    price = _decode_price(rows, mixed)
    if not np.any(price > 0.0):
        return GAMMA_WITHOUT_FIT
    return fit_gamma(extra, price, mixed.weights)


def _most(form: Form) -> int:
    return MOST_KNOTS if form.dense == "knots" else 1 << 30


def _curve(points: Points, x: Floats) -> Floats:
    return _at(TokenCurve(knots_tokens_ms=points), x)


def _at(term: TokenCurve, x: Floats) -> Floats:
    curve = term.curve()
    return np.array([curve.at(value) for value in x.tolist()])


def _prefill_price(term: PrefillAttentionTerm, rows: Rows) -> Floats:
    read = term.read_base_ms + term.read_token_ms * rows.context
    compute = term.base_ms + term.chunk_ms * rows.chunks + term.token_ms * rows.new
    price: Floats = np.maximum(read, compute + term.quad_ms * rows.quad)
    return price


def _decode_price(rows: tuple[AttentionRow, ...], steps: Rows) -> Floats:
    starts = [row.from_batch for row in rows]
    at = np.maximum(np.searchsorted(starts, steps.batch, side="right") - 1, 0)
    base, seq, kv = (
        np.array([getattr(row, name) for row in rows])[at]
        for name in ("base_ms", "seq_ms", "kv_token_ms")
    )
    price: Floats = base + seq * steps.batch + kv * steps.kv
    return price


def _column(samples: Sequence[Sample], name: str) -> Floats:
    return np.array([getattr(sample, name) for sample in samples], dtype=np.float64)


def _rounded(points: Points) -> Points:
    return tuple((x, _digits(y)) for x, y in points)


def _rounded_row(row: AttentionRow) -> AttentionRow:
    prices = row.model_dump(exclude={"from_batch"})
    return AttentionRow(
        from_batch=row.from_batch, **{name: _digits(ms) for name, ms in prices.items()}
    )


def _digits(value: float) -> float:
    """Round to nine significant digits: readable, and far below any error of a fit."""
    return float(f"{value:.9g}")
