"""The numerics: known coefficients come back, and the choices they rest on are the right ones."""

import numpy as np
import pytest

from calibrate.solve import (
    choose_knots,
    decode_bands,
    fit_curve,
    fit_decode,
    fit_gamma,
    fit_lines,
    fit_prefill,
    ramps,
    solve,
    through,
)
from sim.costs.terms import Curve, PrefillAttention

LINES = {
    "read_base_ms": 0.012, "read_token_ms": 1e-6, "base_ms": 0.003, "chunk_ms": 3e-4,
    "token_ms": 2e-6, "quad_ms": 2e-8,
}  # fmt: skip


def noisy(y, seed, size=0.03):
    return y * np.exp(size * np.random.default_rng(seed).standard_normal(len(y)))


def prefill_points():
    points = [
        (n, n * (size + past), n * size, n * size * (size + 2 * past))
        for n in (1, 2, 4, 8, 16, 64, 128, 256)
        for size in (8, 16, 64, 128, 512, 1024, 4096)
        for past in (0, 512, 4096)
        if n * size <= 16384
    ]
    return np.array(points, dtype=float).T


def prefill_ms(term, n, context, new, quad):
    price = PrefillAttention(
        term.read_base_ms, term.read_token_ms, term.base_ms, term.chunk_ms, term.token_ms,
        term.quad_ms,
    )  # fmt: skip
    return np.array([price.of(*point) for point in zip(n, context, new, quad, strict=True)])


def truth(n, context, new, quad):
    read = LINES["read_base_ms"] + LINES["read_token_ms"] * context
    compute = LINES["base_ms"] + LINES["chunk_ms"] * n + LINES["token_ms"] * new
    return np.maximum(read, compute + LINES["quad_ms"] * quad)


def test_solve_is_non_negative_but_where_free():
    x = np.arange(1.0, 20.0)
    design = np.column_stack([np.ones_like(x), x])
    assert solve(design, 2.0 * x - 5.0, np.ones_like(x), free=(0,)) == pytest.approx([-5.0, 2.0])
    assert solve(design, 2.0 * x - 5.0, np.ones_like(x))[0] == 0.0


def test_residuals_are_relative():
    # two groups that disagree: 1 % of the large ones weighs as much as 1 % of the small ones
    y = np.array([1.0, 3.0, 1000.0, 3000.0])
    design = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    small, large = solve(design, y, 1.0 / y)
    assert large / small == pytest.approx(1000.0)
    assert small == pytest.approx((1 + 1 / 3) / (1 + 1 / 9))  # by hand


def test_ramps_are_the_curve_of_the_profile():
    knots, rises = (4.0, 16.0, 100.0), np.array([3.0, 0.5, 0.25])
    curve = Curve.through(*zip(*through(knots, rises), strict=True))
    x = np.array([1.0, 4.0, 10.0, 16.0, 50.0, 100.0, 900.0])
    assert ramps(x, knots) @ rises == pytest.approx([curve.at(value) for value in x])


def test_one_value_is_a_constant():
    assert fit_curve([8, 8, 8], [2.0, 2.0, 2.0], 5) == ((8.0, pytest.approx(2.0)),)
    relative = (1 + 1 / 3) / (1 + 1 / 9)  # as in test_residuals_are_relative
    assert fit_curve([8, 8], [1.0, 3.0], 5) == ((8.0, pytest.approx(relative)),)


def test_curve_finds_the_knots():
    x = np.unique(np.geomspace(1, 8192, 60).astype(int))
    x = np.union1d(x, [128, 1000])
    y = np.interp(x, [1, 128, 1000, 8192], [2.0, 2.2, 10.0, 80.0])
    curve = Curve.through(*zip(*fit_curve(x, y, 5), strict=True))
    assert [curve.at(v) for v in x] == pytest.approx(y.tolist(), rel=0.01)
    assert len(fit_curve(x, y, 5)) == 5
    even = np.geomspace(1, 8192, 5)
    design = ramps(x, even.tolist())
    unmoved = np.abs(design @ solve(design, y, 1 / y) / y - 1).max()
    assert unmoved > 0.05  # evenly spaced knots would not do


def test_a_curve_never_falls():
    x = np.arange(1, 40)
    values = [ms for _, ms in fit_curve(x, noisy(10.0 + 0.001 * x, 0, 0.1), 8)]
    assert values == sorted(values)


def test_few_values_are_all_knots():
    x = [1, 2, 2, 5]
    assert choose_knots(x, [1.0, 2.0, 2.0, 3.0], 8, np.ones(4)) == (1.0, 2.0, 5.0)


@pytest.mark.parametrize("seed", range(5))
def test_bands_of_decode(seed):
    contexts = [16, 64, 256, 500, 900, 1500, 2500, 4000]
    b, context = (a.ravel() for a in np.meshgrid([1, 2, 4, 8, 16, 32, 64, 128], contexts))
    kv = b * context
    y = np.where(b == 1, 0.01 + 5e-6 * kv, np.where(b < 16, 0.02 + 3e-6 * kv, 1e-3 * b + 2e-6 * kv))
    exact = fit_decode(b, kv, y, (1, 2, 16))
    assert [row.from_batch for row in exact] == [1, 2, 16]
    assert [row.kv_token_ms for row in exact] == pytest.approx([5e-6, 3e-6, 2e-6], rel=1e-6)
    assert exact[0].base_ms == pytest.approx(0.01)
    assert exact[2].seq_ms == pytest.approx(1e-3)
    rough = fit_decode(b, kv, noisy(y, seed), (1, 2, 16))
    price = [rough[0 if n == 1 else 1 if n < 16 else 2] for n in b]
    found = [
        r.base_ms + r.seq_ms * n + r.kv_token_ms * k for r, n, k in zip(price, b, kv, strict=True)
    ]
    assert found == pytest.approx(y.tolist(), rel=0.06)


def test_bands_with_too_few_points_join_a_neighbour():
    assert decode_bands([1, 1, 4, 4, 4, 64], (1, 2, 32)) == [1, 2]
    assert decode_bands([1, 4, 4, 4], (1, 2)) == [1]
    assert decode_bands([2, 2, 8, 8, 8, 9, 9, 9], (1, 2, 8, 9)) == [1, 9]


def test_prefill_lines_without_noise():
    points = prefill_points()
    term = fit_prefill(*points, truth(*points))
    assert term.model_dump() == pytest.approx(LINES, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_prefill_lines_with_noise(seed):
    points = prefill_points()
    term = fit_prefill(*points, noisy(truth(*points), seed))
    error = prefill_ms(term, *points) / truth(*points) - 1
    assert np.abs(error).max() < 0.05
    assert term.quad_ms == pytest.approx(LINES["quad_ms"], rel=0.05)
    assert term.read_token_ms == pytest.approx(LINES["read_token_ms"], rel=0.05)


def test_several_starts_matter(monkeypatch):
    points = prefill_points()
    y = truth(*points)
    monkeypatch.setattr("calibrate.solve.START_SHARES", (1.0,))
    stuck = np.abs(prefill_ms(fit_prefill(*points, y), *points) / y - 1).max()
    monkeypatch.undo()
    best = np.abs(prefill_ms(fit_prefill(*points, y), *points) / y - 1).max()
    assert best < 1e-6 <= stuck


def test_points_without_a_chunk_pay_no_prefill():
    n, context, new, quad = prefill_points()
    y = np.append(7.0 + 3e-4 * n + 2e-6 * quad, [5.0, 5.0, 5.0])
    columns = [np.append(column, [0.0, 0.0, 0.0]) for column in (n, context, new, quad)]
    lines = fit_lines(*columns, y, 1 / y, np.ones((len(y), 1)))
    assert lines.common[0] == pytest.approx(5.0, rel=1e-6)
    assert lines.term.base_ms == pytest.approx(2.0, rel=1e-6)
    assert lines.term.quad_ms == pytest.approx(2e-6, rel=1e-6)


def test_gamma():
    assert fit_gamma([3.0, 1.5], [2.0, 1.0]) == pytest.approx(1.5)
    assert fit_gamma([1.0, 0.5], [2.0, 1.0]) == 1.0  # never cheaper beside a chunk
    # weights: the second counts for nothing
    assert fit_gamma([3.0, 9.0], [2.0, 1.0], [1.0, 0.0]) == pytest.approx(1.5)
