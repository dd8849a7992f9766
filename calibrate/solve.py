"""Fit each term of the step form (`spec/costs.md` section 1): numbers in, terms out.

Every fit is a least-squares problem in *relative* residuals (weights 1/measured, unless the caller
gives others), with the coefficients a profile holds non-negative solved by non-negative least
squares. Arrays are one-dimensional and equally long; times are milliseconds, of whatever the caller
fits (a layer's operator, a whole forward pass).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from sim.costs.profile import AttentionRow, PrefillAttentionTerm

Floats = NDArray[np.float64]
Points = tuple[tuple[float, float], ...]

MOST_ROUNDS = 50
"""Rounds of reassigning points to the two prefill lines; in practice fewer than ten are needed."""

START_SHARES = (1.0, 0.85, 0.7, 0.5, 0.3, 0.15, 0.0)
"""Shares of the points that start on the compute line: those with the most work per token read."""

MIN_BAND_POINTS = 3
"""Points a band of batch sizes needs for its three coefficients; a smaller one joins its
neighbour."""


@dataclass(frozen=True)
class Lines:
    """Prefill attention, and what was fitted beside it.

    Attributes:
        term: the two lines.
        common: coefficients of the columns every point has (none in an operator fit).
        loss: sum of squared relative residuals.
    """

    term: PrefillAttentionTerm
    common: Floats
    loss: float


def solve(design: Floats, y: ArrayLike, weights: ArrayLike, free: Sequence[int] = ()) -> Floats:
    """Return the coefficients that minimise the weighted squares, non-negative but for `free`.

    Args:
        design: one row a point, one column a coefficient.
        y: measured, one a point.
        weights: of the residuals, one a point (relative fits: 1/measured).
        free: columns whose coefficient may be negative.
    """
    factor = _array(weights)
    wide = np.hstack([design, -design[:, list(free)]]) * factor[:, None]
    scale = np.linalg.norm(wide, axis=0)
    scale[scale == 0.0] = 1.0
    found, _ = nnls(wide / scale, _array(y) * factor, maxiter=50 * wide.shape[1])
    found = found / scale
    width = design.shape[1]
    coefficients: Floats = found[:width].copy()
    coefficients[list(free)] -= found[width:]
    return coefficients


def ramps(x: ArrayLike, knots: Sequence[float]) -> Floats:
    """Return the columns of a rising piecewise-linear curve: a constant and one slope a segment.

    The first and last segments go on outside the knots, as in `sim.costs.terms.Curve.through`.
    """
    values = _array(x)
    columns = [np.ones_like(values)]
    for at, (left, right) in enumerate(pairwise(knots)):
        low = -np.inf if at == 0 else 0.0
        high = np.inf if at == len(knots) - 2 else right - left
        columns.append(np.clip(values - left, low, high))
    return np.column_stack(columns)


def through(knots: Sequence[float], coefficients: Floats) -> Points:
    """Return (position, value) of each knot of the curve `ramps(x, knots) @ coefficients`."""
    values = ramps(knots, knots) @ coefficients
    return tuple((float(x), float(y)) for x, y in zip(knots, values, strict=True))


def choose_knots(
    x: ArrayLike, y: ArrayLike, count: int, weights: ArrayLike, beside: Floats | None = None
) -> tuple[float, ...]:
    """Return at most `count` knot positions among the values of `x`.

    The outermost values are always knots. The inner ones start evenly spaced in the logarithm and
    move, one at a time, to the value that lowers the loss most, until none does.

    Args:
        x: positions of the points.
        y: measured at them.
        count: how many knots; all values of `x` when there are no more than that.
        weights: of the residuals.
        beside: further non-negative columns fitted together with the curve.
    """
    values = np.unique(_array(x))
    if len(values) <= count:
        return tuple(values.tolist())
    extra = np.empty((len(_array(x)), 0)) if beside is None else beside
    logs = np.log(np.maximum(values, 0.5))
    wanted = np.interp(np.linspace(logs[0], logs[-1], count), logs, np.arange(len(values)))
    chosen = sorted({0, len(values) - 1, *np.rint(wanted).astype(int).tolist()})
    spare = [at for at in range(len(values)) if at not in chosen]
    while len(chosen) < count:
        chosen = sorted([*chosen, spare.pop(len(spare) // 2)])

    def loss(at: list[int]) -> float:
        design = np.hstack([ramps(x, values[at].tolist()), extra])
        return _loss(design @ solve(design, y, weights), y, weights)

    best = loss(chosen)
    moved = True
    while moved:
        moved = False
        for inner in range(1, len(chosen) - 1):
            for to in range(chosen[inner - 1] + 1, chosen[inner + 1]):
                other = [*chosen[:inner], to, *chosen[inner + 1 :]]
                trial = loss(other)
                if trial < best * (1 - 1e-6):
                    best, chosen, moved = trial, other, True
    return tuple(values[chosen].tolist())


def fit_curve(x: ArrayLike, y: ArrayLike, knots: int) -> Points:
    """Fit a rising piecewise-linear curve through at most `knots` knots, y > 0.

    Returns:
        (position, milliseconds) of each knot, positions rising.
    """
    weights = 1.0 / _array(y)
    positions = choose_knots(x, y, knots, weights)
    return through(positions, solve(ramps(x, positions), y, weights))


def decode_bands(batch: ArrayLike, starts: Sequence[int]) -> list[int]:
    """Return those starts whose bands of batch sizes hold enough points; always 1."""
    sizes = _array(batch)
    kept = [1]
    for start in sorted(set(starts) - {1}):
        below = np.count_nonzero((sizes >= kept[-1]) & (sizes < start))
        needed = 2 if kept == [1] and start == 2 else MIN_BAND_POINTS  # one size: no slope in B
        if below >= needed and np.count_nonzero(sizes >= start) >= MIN_BAND_POINTS:
            kept.append(start)
    return kept


def fit_decode(
    batch: ArrayLike,
    kv: ArrayLike,
    y: ArrayLike,
    starts: Sequence[int],
    weights: ArrayLike | None = None,
) -> tuple[AttentionRow, ...]:
    """Fit decode attention `base + seq*B + kv*K` per band of batch sizes, all non-negative.

    Args:
        batch: decodes of each point.
        kv: cached tokens of each point, over all its decodes.
        y: milliseconds.
        starts: first batch size of each band; 1 is always a start, and with 2 in it batch 1 is a
            band of its own. A band with too few points joins its neighbour.
        weights: of the residuals, 1/y without.
    """
    sizes, cached, measured = _array(batch), _array(kv), _array(y)
    factor = 1.0 / measured if weights is None else _array(weights)
    edges = decode_bands(sizes, starts)
    rows = []
    for start, end in zip(edges, [*edges[1:], np.inf], strict=True):
        inside = (sizes >= start) & (sizes < end)
        design = np.column_stack([np.ones_like(sizes), sizes, cached])[inside]
        if len(np.unique(sizes[inside])) == 1:
            design[:, 1] = 0.0  # one batch size: the constant holds it
        base, seq, token = solve(design, measured[inside], factor[inside])
        rows.append(
            AttentionRow(
                from_batch=start, base_ms=float(base), seq_ms=float(seq), kv_token_ms=float(token)
            )
        )
    return tuple(rows)


def fit_prefill(
    chunks: ArrayLike, context: ArrayLike, new: ArrayLike, quad: ArrayLike, y: ArrayLike
) -> PrefillAttentionTerm:
    """Fit the two lines of prefill attention to an operator's times.

    Args:
        chunks: n, chunks of each point.
        context: sum(l+p) of each point, tokens.
        new: sum(l), tokens.
        quad: sum(l*(l+2p)), tokens squared.
        y: milliseconds.
    """
    measured = _array(y)
    nothing = np.empty((len(measured), 0))
    return fit_lines(chunks, context, new, quad, measured, 1.0 / measured, nothing).term


def fit_lines(
    chunks: ArrayLike,
    context: ArrayLike,
    new: ArrayLike,
    quad: ArrayLike,
    y: ArrayLike,
    weights: ArrayLike,
    common: Floats,
) -> Lines:
    """Fit `common @ x + max(read line, compute line)` by alternating assignment.

    Given which line holds each point, the rest is one least-squares problem; given the lines, each
    point belongs to the larger one. Repeated to a standstill from several starts; the start with
    the lowest loss wins. Where `common` holds a constant, the read line has none of its own: the
    two cannot be told apart.

    Args:
        chunks: as in `fit_prefill`, like the next four.
        context: see there.
        new: see there.
        quad: see there.
        y: milliseconds.
        weights: of the residuals.
        common: non-negative columns that every point has, one row a point; may have no column.
    """
    measured = _array(y)
    ones = (_array(chunks) > 0).astype(np.float64)
    read = np.column_stack([np.zeros_like(ones) if common.shape[1] else ones, _array(context)])
    compute = np.column_stack([ones, _array(chunks), _array(new), _array(quad)])
    intensity = _array(quad) / np.maximum(_array(context), 1.0)
    best: tuple[float, Floats] | None = None
    for share in START_SHARES:
        order = np.argsort(np.argsort(-intensity, kind="stable"), kind="stable")
        computes = order < round(share * len(measured))
        found = _alternate(common, read, compute, measured, _array(weights), computes)
        if best is None or found[0] < best[0] * (1 - 1e-9):
            best = found
    assert best is not None
    loss, x = best
    c0, c1, c2, c3, c4, c5 = x[common.shape[1] :].tolist()
    term = PrefillAttentionTerm(
        read_base_ms=c0, read_token_ms=c1, base_ms=c2, chunk_ms=c3, token_ms=c4, quad_ms=c5
    )
    return Lines(term, x[: common.shape[1]], loss)


def _alternate(
    common: Floats,
    read: Floats,
    compute: Floats,
    y: Floats,
    weights: Floats,
    computes: NDArray[np.bool_],
) -> tuple[float, Floats]:
    """Return the best loss on the way from one start, and its coefficients."""
    width = common.shape[1]
    free = (width + 2, width + 4)  # base and slope of the compute line; it is cut by the read line
    best: tuple[float, Floats] | None = None
    for _ in range(MOST_ROUNDS):
        design = np.hstack([common, read * ~computes[:, None], compute * computes[:, None]])
        x = solve(design, y, weights, free)
        low, high = read @ x[width : width + 2], compute @ x[width + 2 :]
        loss = _loss(common @ x[:width] + np.maximum(low, high), y, weights)
        if best is None or loss < best[0]:
            best = (loss, x)
        if np.array_equal(high > low, computes):
            break
        computes = high > low
    assert best is not None
    return best


def fit_gamma(
    extra_with_chunk: ArrayLike, decode_price: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Fit how much dearer decode attention is beside a chunk, at least 1.

    Args:
        extra_with_chunk: what the decodes of a mixed step add to everything else in it, ms.
        decode_price: the price of the same decodes in a step without a chunk, ms.
        weights: of the residuals, 1/extra without (times of steps are better weights: 1/step).
    """
    extra, price = _array(extra_with_chunk), _array(decode_price)
    factor = 1.0 / extra if weights is None else _array(weights)
    top = float(np.sum(extra * price * factor**2))
    return max(1.0, top / float(np.sum((price * factor) ** 2)))


def _loss(predicted: Floats, y: ArrayLike, weights: ArrayLike) -> float:
    return float(np.sum(((predicted - _array(y)) * _array(weights)) ** 2))


def _array(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)
