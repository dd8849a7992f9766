"""The grid: what it holds, in which order, and what a point says of itself."""

import math
from collections import Counter
from dataclasses import dataclass

import pytest

from calibrate import points as points_module
from calibrate.fit import fit_samples
from calibrate.points import Limits, Point, spread_out
from calibrate.runs import timed
from sim.costs.catalogue import model_named

TINY = Limits(max_length=2048, num_blocks=1024, block_size=16, step_tokens=1024, sequences=64)
LARGE = Limits(max_length=4096, num_blocks=9001, block_size=16, step_tokens=16384, sequences=256)
BOTH = (False, True)


@dataclass(frozen=True)
class FakeTiming:
    device_ms: float
    wall_ms: float


def price(point):
    """Seconds, roughly: a constant, tokens, and keys read."""
    return 0.1 + 2e-3 * point.step_tokens + 1e-5 * (point.context_tokens + point.kv_tokens)


def grid(limits, paths):
    return points_module.grid(limits, paths, price)


def test_lengths_are_readable():
    assert Point("prefill", False, ((128, 0),) * 16).lengths == "16x128"
    assert Point("prefill", False, ((128, 0), (64, 0), (512, 0))).lengths == "128+64+512"
    assert Point("prefill", False, ((256, 1024),)).lengths == "256@1024"
    assert Point("decode", False, decodes=(1024,) * 32).lengths == "d32x1024"
    mixed = Point("mixed", False, ((256, 1024), (8, 0), (8, 0)), (64, 64, 32))
    assert mixed.lengths == "256@1024+2x8;d2x64+1x32"


def test_sums_of_a_padding_free_step():
    point = Point("mixed", False, ((100, 50), (10, 0)), (64, 32))
    assert (point.new_tokens, point.context_tokens) == (110, 160)
    assert point.quad_tokens == 100 * 200 + 10 * 10
    assert (point.batch, point.kv_tokens, point.step_tokens) == (2, 96, 112)


def test_padded_sums_are_those_of_the_rectangle():
    point = Point("mixed", True, ((100, 50), (10, 0)), (64, 32))
    assert (point.new_tokens, point.context_tokens) == (200, 300)
    assert point.quad_tokens == 2 * 100 * 200
    assert (point.batch, point.kv_tokens, point.step_tokens) == (2, 128, 202)
    assert point.lengths == "100@50+10;d1x64+1x32"


def test_blocks_count_the_token_a_decode_writes():
    assert Point("decode", False, decodes=(15, 16)).kv_blocks(16) == 1 + 2
    assert Point("prefill", False, ((16, 16), (1, 0))).kv_blocks(16) == 2 + 1


def test_working_memory_grows_with_the_rectangle():
    model = model_named("llama-2-13b")
    lengths = ((512, 0),) + ((8, 0),) * 63
    packed = Point("prefill", False, lengths).working_bytes(model, "bf16")
    padded = Point("prefill", True, lengths).working_bytes(model, "bf16")
    assert padded > 20 * packed


@pytest.mark.parametrize("limits", [TINY, LARGE])
def test_every_point_keeps_the_limits(limits):
    for point in grid(limits, BOTH):
        assert point.kv_blocks(limits.block_size) <= limits.num_blocks, point
        assert point.new_tokens <= limits.step_tokens, point
        assert all(sum(chunk) <= limits.max_length for chunk in point.chunks), point
        assert all(context < limits.max_length for context in point.decodes), point
        assert max(len(point.chunks), point.batch) <= limits.sequences, point


def test_limits_below_a_block_leave_few_points_but_no_error():
    points = grid(
        Limits(max_length=16, num_blocks=2, block_size=16, step_tokens=16, sequences=4), BOTH
    )
    assert all(point.kv_blocks(16) <= 2 for point in points if point.phase != "host")


@pytest.mark.parametrize("limits", [TINY, LARGE])
def test_points_are_told_apart_by_their_key(limits):
    points = grid(limits, BOTH)
    assert len({point.key for point in points}) == len(points)
    assert not any("," in point.lengths for point in points)


def test_the_grid_holds_what_the_issue_names():
    points = {point.key: point for point in grid(LARGE, BOTH)}
    for length in (8, 16, 32, 64):
        assert ("prefill", False, f"256x{length}") in points
    prefixes = [p for p in points.values() if p.phase == "prefill" and p.chunks[0][1]]
    assert len({len(p.chunks) for p in prefixes}) >= 3
    assert len({p.chunks[0][0] for p in prefixes}) >= 3
    assert {p.batch for p in points.values() if p.phase == "decode"} == {2**i for i in range(9)}
    assert {p.batch for p in points.values() if p.phase == "mixed"} == {1, 4, 16, 64, 256}
    assert {len(p.chunks) for p in points.values() if p.phase == "host"} == {0, 1, 4, 16, 64, 256}
    assert ("prefill", False, "16384") not in points
    assert ("decode", False, "d1x4095") in points


def test_both_paths_measure_the_same_unequal_prompts():
    points = grid(LARGE, BOTH)
    unequal = [p for p in points if p.phase == "prefill" and len(set(p.chunks)) > 1]
    packed = {p.lengths for p in unequal if not p.padded}
    assert len(packed) >= 10
    assert packed == {p.lengths for p in unequal if p.padded}


def test_decodes_of_unequal_contexts_reach_two_lengths():
    points = [p for p in grid(LARGE, (False,)) if p.phase == "decode" and p.batch == 64]
    assert sorted(max(p.decodes) for p in points if len(set(p.decodes)) > 1) == [1024, 2239]


def test_paths_are_chosen():
    assert {point.padded for point in grid(TINY, (False,))} == {False}
    assert {point.padded for point in grid(TINY, (True,))} == {True}


@pytest.mark.parametrize("limits", [TINY, LARGE])
def test_the_first_thirty_points_cover_every_phase(limits):
    """Of one path: enough points to fit every term, and their ranges nearly those of the grid."""
    points = grid(limits, (False,))
    first, count = points[:30], Counter(p.phase for p in points[:30])
    assert count["prefill"] >= 8
    assert count["decode"] >= 8
    assert count["mixed"] >= 6
    assert count["host"] >= 2
    for phase in ("prefill", "decode", "mixed"):
        for size in ("new_tokens", "context_tokens", "batch", "kv_tokens"):
            whole = [getattr(p, size) for p in points if p.phase == phase]
            start = [getattr(p, size) for p in first if p.phase == phase]
            assert max(start) >= max(whole) / 4, (phase, size)
            assert min(start) <= 8 * max(1, min(whole)), (phase, size)
    assert any(p.chunks[0][1] for p in first if p.phase == "prefill")
    assert any(len(p.chunks) >= 16 for p in first if p.phase == "prefill")
    assert len({p.batch for p in first if p.phase == "decode"}) >= 4


@pytest.mark.parametrize(("paths", "length"), [((False,), 30), (BOTH, 64)])
def test_the_first_points_are_enough_to_fit(paths, length):
    about = {
        "model": "tiny-llama", "gpu": "cpu", "dtype": "fp32", "device": "x", "torch": "2",
        "num_gpu_blocks": 512, "block_size": 16,
    }  # fmt: skip
    samples = []
    for point in grid(TINY, paths)[:length]:
        wall_ms = 1e3 * price(point)
        samples.append(timed(point, [FakeTiming(wall_ms - 1.0, wall_ms)]))
    for padded in paths:
        error = fit_samples(samples, about, padded).held_out["all"]
        assert error.median_abs_frac < 0.05


@pytest.mark.parametrize("length", [24, 30, 60, 120])
def test_every_prefix_of_the_list_covers_every_phase_of_both_paths(length):
    points = grid(TINY, BOTH)[:length]
    count = Counter((p.phase, p.padded) for p in points)
    assert len(count) == 8
    packed, padded = (sum(n for key, n in count.items() if key[1] is path) for path in BOTH)
    assert packed / 3 <= padded <= packed


def test_corners_come_first_then_the_middle():
    points = [Point("decode", False, decodes=(16,) * 2**i) for i in range(9)]
    order = [int(math.log2(point.batch)) for point in spread_out(points, lambda point: 1.0)]
    assert order[:3] == [0, 8, 4]
    assert set(order[3:5]) == {2, 6}
    assert sorted(order) == list(range(9))


def test_after_the_corners_a_costly_point_comes_later():
    """Of middles as far from the rest, the one that takes 1000 times as long waits."""
    points = [Point("decode", False, decodes=(16,) * 2**i) for i in range(9)]
    order = [p.batch for p in spread_out(points, lambda p: 1000.0 if p.batch == 32 else 1.0)]
    assert order[:4] == [1, 256, 16, 64]
    assert order[-1] == 32
