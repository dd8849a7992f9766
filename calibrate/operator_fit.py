"""The step form fitted to operators and judged on them, term by term and as whole steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.compose import BYTES, Operators, attention, composed
from calibrate.solve import fit_curve, fit_decode, fit_gamma, fit_prefill
from calibrate.steps import Ints, Steps
from calibrate.tables import Floats
from sim.costs.catalogue import Model
from sim.costs.model import FS_PER_MS, StepCost
from sim.costs.profile import (
    AllreduceTerm,
    AttentionRow,
    PrefillAttentionTerm,
    Profile,
    Terms,
    TokenCurve,
)

DENSE_KNOTS, ROW_KNOTS, LINK_KNOTS = 10, 6, 8
DENSE_SIZES, ROW_SIZES = 72, 36
"""Places at which the curves are asked for, between which the knots are chosen."""

LARGEST_STEP_TOKENS = 16_384
"""Curves reach at least so far: prefill batches of static and bucketed policies."""

LARGEST_BATCH = 256
BATCH_STARTS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Batch sizes at which the decode coefficients may switch."""

DIGITS = 6


@dataclass(frozen=True)
class Errors:
    """Relative errors of predicted times, as fractions.

    Attributes:
        points: how many.
        median: median of |predicted/true - 1|.
        p95: its 95th percentile.
        mean: its mean.
        bias: mean of predicted/true - 1.
    """

    points: int
    median: float
    p95: float
    mean: float
    bias: float


def fit_terms(operators: Operators, steps: Steps, model: Model, tp: int) -> Terms:
    """Fit every term to its operator, on given steps.

    Rows and links are curves of a few knots, dense layers too where no table holds them; decode
    attention is weighted by the step it is part of; gamma comes last, the decode coefficients
    frozen.
    """
    most_tokens = max(LARGEST_STEP_TOKENS, int(steps.tokens.max()))
    tokens = _places(steps.tokens, most_tokens, DENSE_SIZES)
    rows = _places(steps.rows, max(LARGEST_BATCH, int(steps.rows.max())), ROW_SIZES)
    allreduce = None
    if tp > 1:
        message = tokens * model.hidden * BYTES
        knots = fit_curve(message, operators.allreduce(message), LINK_KNOTS)
        allreduce = AllreduceTerm(knots_bytes_ms=_knots(knots))
    decode = _fit_decode(operators, steps, model, tp)
    return Terms(
        dense=TokenCurve(knots_tokens_ms=_knots(_dense(operators, tokens))),
        lm_head=TokenCurve(
            knots_tokens_ms=_knots(fit_curve(rows, operators.lm_head(rows), ROW_KNOTS))
        ),
        prefill_attention=_fit_prefill(operators, steps),
        decode_attention=decode,
        gamma=_fit_gamma(operators, steps, decode, model, tp),
        allreduce=allreduce,
    )


def _dense(operators: Operators, tokens: Floats) -> Sequence[tuple[float, float]]:
    """Return the dense layers: the table where there is one (waves and tiles show), else knots."""
    if operators.dense_sizes is None:
        return fit_curve(tokens, operators.dense(tokens), DENSE_KNOTS)
    sizes = np.union1d(operators.dense_sizes, tokens[-1:])
    return list(zip(sizes.tolist(), operators.dense(sizes).tolist(), strict=True))


def _fit_decode(
    operators: Operators, steps: Steps, model: Model, tp: int
) -> tuple[AttentionRow, ...]:
    held = steps.where(steps.batch > 0)
    y = operators.decode(held.batch, held.kv)
    weights = model.layers / composed(operators, held, model, tp)
    rows = fit_decode(held.batch, held.kv, y, BATCH_STARTS, weights)
    return tuple(
        AttentionRow(
            from_batch=row.from_batch,
            base_ms=_short(row.base_ms),
            seq_ms=_short(row.seq_ms),
            kv_token_ms=_short(row.kv_token_ms),
        )
        for row in rows
    )


def _fit_prefill(operators: Operators, steps: Steps) -> PrefillAttentionTerm:
    held = steps.where(steps.chunks > 0)
    y = operators.prefill(held)
    term = fit_prefill(held.chunks, held.context, held.new, held.quad, y)
    return PrefillAttentionTerm(**{key: _short(ms) for key, ms in term.model_dump().items()})


def _fit_gamma(
    operators: Operators, steps: Steps, rows: Sequence[AttentionRow], model: Model, tp: int
) -> float:
    held = steps.where((steps.chunks > 0) & (steps.batch > 0))
    weights = model.layers / composed(operators, held, model, tp)
    return _short(fit_gamma(operators.beside(held), decode_price(rows, held), weights))


def _places(seen: Ints, most: int, count: int) -> Floats:
    """Return sizes at which to ask for a curve: of the steps seen, and evenly up to `most`.

    Frequent sizes are there several times, which is their weight.
    """
    of_steps = np.quantile(seen[seen > 0], np.linspace(0, 1, 2 * count // 3), method="nearest")
    even = np.rint(np.geomspace(1, most, count - len(of_steps)))
    return np.sort(np.concatenate([of_steps, even])).astype(np.float64)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _knots(knots: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return tuple((x, _short(y)) for x, y in knots)


# -- judging ------------------------------------------------------------------------------------


def errors(predicted: Floats, true: Floats) -> Errors:
    """Return the relative errors of `predicted`; where `true` is 0 there is nothing to judge."""
    told = true > 0
    if not told.any():
        return Errors(0, 0.0, 0.0, 0.0, 0.0)
    off = predicted[told] / true[told] - 1
    size = np.abs(off)
    return Errors(
        int(told.sum()),
        float(np.median(size)),
        float(np.quantile(size, 0.95)),
        float(size.mean()),
        float(off.mean()),
    )


def judge(operators: Operators, profile: Profile, model: Model, steps: Steps) -> Errors:
    """Compare the simulator's price of every step with the composed time."""
    cost = StepCost(profile, model)
    columns = (steps.chunks, steps.new, steps.context, steps.quad, steps.batch, steps.kv)
    fs = [cost.step(*(int(v) for v in step)) for step in zip(*columns, strict=True)]
    return errors(np.array(fs) / FS_PER_MS, composed(operators, steps, model, profile.tp))


def judge_terms(
    operators: Operators, terms: Terms, steps: Steps, model: Model
) -> dict[str, Errors]:
    """Compare every term with its operator on given steps."""
    decodes = steps.where((steps.batch > 0) & (steps.chunks == 0))
    mixed = steps.where((steps.batch > 0) & (steps.chunks > 0))
    chunked = steps.where(steps.chunks > 0)
    found = {
        "dense": errors(_curve(terms.dense, steps.tokens), operators.dense(steps.tokens)),
        "lm_head": errors(_curve(terms.lm_head, steps.rows), operators.lm_head(steps.rows)),
        "prefill attention": errors(
            prefill_price(terms.prefill_attention, chunked), operators.prefill(chunked)
        ),
        "decode attention": errors(
            decode_price(terms.decode_attention, decodes),
            operators.decode(decodes.batch, decodes.kv),
        ),
        "mixed attention": errors(
            prefill_price(terms.prefill_attention, mixed)
            + terms.gamma * decode_price(terms.decode_attention, mixed),
            attention(operators, mixed),
        ),
    }
    if terms.allreduce is not None:
        message = steps.tokens * model.hidden * BYTES
        curve = terms.allreduce.curve()
        price = np.array([curve.at(size) for size in message])
        found["all-reduce"] = errors(price, operators.allreduce(message))
    return found


def decode_price(rows: Sequence[AttentionRow], steps: Steps) -> Floats:
    """Return the decode term of every step, ms a layer."""
    starts = [row.from_batch for row in rows]
    at = np.maximum(np.searchsorted(starts, steps.batch, side="right") - 1, 0)
    base, seq, kv = (
        np.array([getattr(row, key) for row in rows])[at]
        for key in ("base_ms", "seq_ms", "kv_token_ms")
    )
    price: Floats = base + seq * steps.batch + kv * steps.kv
    return price


def prefill_price(term: PrefillAttentionTerm, steps: Steps) -> Floats:
    """Return the prefill term of every step, ms a layer."""
    read = term.read_base_ms + term.read_token_ms * steps.context
    compute = term.base_ms + term.chunk_ms * steps.chunks + term.token_ms * steps.new
    price: Floats = np.maximum(read, compute + term.quad_ms * steps.quad)
    return price


def _curve(curve: TokenCurve, x: Ints) -> Floats:
    made = curve.curve()
    return np.array([made.at(value) for value in x.tolist()])
