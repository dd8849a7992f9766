"""Each term of a step against numbers worked by hand."""

import pytest

from sim.costs.terms import Curve, DecodeAttention, DecodeRows, Host, PrefillAttention


def test_knots_are_joined_and_extended():
    curve = Curve.through([1, 5, 10], [2.0, 4.0, 9.0])
    assert curve.at(1) == 2.0
    assert curve.at(3) == 3.0  # halfway between 2 and 4
    assert curve.at(5) == 4.0
    assert curve.at(7) == 6.0  # slope 1
    assert curve.at(10) == 9.0
    assert curve.at(20) == 19.0  # the last segment goes on
    assert curve.at(0) == 1.5  # and so does the first


def test_one_knot_is_a_constant():
    curve = Curve.through([4], [3.5])
    assert [curve.at(x) for x in (0, 4, 1000)] == [3.5, 3.5, 3.5]


def test_lines_may_jump():
    curve = Curve([0, 95], [20.0, 7.0], [0.5, 0.1])
    assert curve.at(94) == 67.0
    assert curve.at(95) == 16.5


def test_host():
    host = Host(step=1_000, prefill_step=10_000, seq=300, token=2)
    assert host.of(4, holds_chunk=False) == 2_200
    assert host.of(4, holds_chunk=True) == 12_200
    assert host.of(4, holds_chunk=True, tokens=50) == 12_300


def test_prefill_attention_is_priced_once_for_all_chunks():
    # ns; 128 prompts of 16 tokens take 44 us a layer on an H100, not 128 x 10 us
    attention = PrefillAttention(
        read_base=5_000, read_token=2, base=10_208, chunk=200, token=4, quad=0
    )
    assert attention.of(chunks=128, context=2048, new=2048, quad=128 * 16 * 16) == 44_000
    assert attention.of(chunks=1, context=16, new=16, quad=256) == 10_208 + 200 + 64


def test_prefill_attention_is_the_slower_line():
    attention = PrefillAttention(read_base=100, read_token=3, base=50, chunk=7, token=2, quad=1)
    # 20 new tokens on 1,000 cached: reading 100 + 3*1020 = 3,160; computing 50 + 7 + 40 + 40,400
    assert attention.of(1, 1020, 20, 20 * (20 + 2000)) == 40_497
    # one new token on 1,000 cached: reading 3,103; computing 50 + 7 + 2 + 2,001
    assert attention.of(1, 1001, 1, 2001) == 3_103


def test_decode_attention_is_affine():
    assert DecodeAttention(base=11, seq=5, kv=2).of(3, 100) == 226


@pytest.mark.parametrize(("batch", "base"), [(1, 10), (2, 20), (94, 20), (95, 30), (5000, 30)])
def test_decode_rows_switch_with_the_batch(batch, base):
    rows = DecodeRows([1, 2, 95], [DecodeAttention(b, 0, 0) for b in (10, 20, 30)])
    assert rows.row(batch).base == base
