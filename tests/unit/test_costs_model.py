"""StepCost: composed steps worked by hand, affine pieces, floors, fitted ranges."""

import pytest

from sim.costs.catalogue import model_named
from sim.costs.model import StepCost
from sim.costs.profile import HostTerm, Profile

MS = 10**12

# llama-2-7b: 32 layers, hidden 4096. Times in ms; attention per layer.
TERMS = {
    "host": {"step_ms": 0.5, "prefill_step_ms": 0.25, "seq_ms": 0.125, "token_ms": 0.001},
    "dense": {"knots_tokens_ms": [[1, 8.0], [101, 18.0]]},
    "lm_head": {"lines": [{"base_ms": 0.5, "token_ms": 0.0625}]},
    "prefill_attention": {
        "read_base_ms": 0.01,
        "read_token_ms": 0.001,
        "base_ms": 0.02,
        "chunk_ms": 0.01,
        "token_ms": 0.001,
        "quad_ms": 0.0001,
    },
    "decode_attention": [
        {"base_ms": 0.01, "seq_ms": 0.02, "kv_token_ms": 0.0001},
        {"from_batch": 2, "base_ms": 0.03, "seq_ms": 0.01, "kv_token_ms": 0.0002},
    ],
    "gamma": 2.0,
}


def profile(terms=None, **fields):
    data = {
        "name": "p",
        "gpu": "h100",
        "model": "llama-2-7b",
        "tp": 1,
        "dtype": "fp16",
        "engine": "test",
        "basis": "measured",
        "source": "-",
        "derivation": "-",
        "terms": TERMS if terms is None else terms,
    }
    return Profile.model_validate(data | fields)


def step_cost(terms=None, min_step_s=0.0, **fields):
    return StepCost(profile(terms, **fields), model_named("llama-2-7b"), min_step_s)


def approx_ms(value):
    return pytest.approx(value * MS, rel=1e-12)


def test_prefill_step():
    # two prompts of 10 and 20 tokens: T 30, S 2, quad 500
    # host 0.5 + 0.25 + 2*0.125 + 30*0.001 = 1.03; dense 8 + 29*0.1 = 10.9; lm_head 0.625
    # compute 0.02 + 0.02 + 0.03 + 0.05 = 0.12 a layer > read 0.04: 32 * 0.12 = 3.84
    assert step_cost().step(2, 30, 30, 500, 0, 0) == approx_ms(1.03 + 10.9 + 0.625 + 3.84)


def test_host_time_comes_on_top_of_the_profiles():
    extra = HostTerm(step_ms=1.0, seq_ms=0.3, prefill_step_ms=10.0)
    plain, slow = step_cost(), StepCost(profile(), model_named("llama-2-7b"), host=extra)
    # Two chunks and three decodes are five sequences.
    prefill = slow.step(2, 30, 30, 500, 3, 60) - plain.step(2, 30, 30, 500, 3, 60)
    assert prefill == approx_ms(1 + 10 + 5 * 0.3)
    assert slow.decode(3).base_fs - plain.decode(3).base_fs == approx_ms(1 + 3 * 0.3)
    assert slow.decode(3).slope_fs == plain.decode(3).slope_fs


def test_decode_step():
    # 3 decodes on 1,000 tokens: host 0.5 + 3*0.125 + 1 = 1.875; dense 8.2; lm_head 0.6875
    # attention 32 * (0.03 + 0.03 + 0.2) = 8.32, no gamma
    assert step_cost().step(0, 0, 0, 0, 3, 1000) == approx_ms(1.875 + 8.2 + 0.6875 + 8.32)


def test_batch_of_one_has_its_own_row():
    # 32 * (0.01 + 0.02 + 0.1) = 4.16; host 1.625; dense 8; lm_head 0.5625
    assert step_cost().step(0, 0, 0, 0, 1, 1000) == approx_ms(4.16 + 1.625 + 8.0 + 0.5625)


def test_mixed_step_pays_gamma():
    # chunk of 10 on 90 cached (context 100, quad 1,900), 3 decodes on 1,000: T 13, S 4
    # host 0.75 + 0.5 + 1.01; dense 9.2; lm_head 0.75; compute 0.02 + 0.01 + 0.01 + 0.19 = 0.23
    # decode attention 2 * 0.26
    expected = 2.26 + 9.2 + 0.75 + 32 * (0.23 + 0.52)
    assert step_cost().step(1, 10, 100, 1900, 3, 1000) == approx_ms(expected)


def test_reading_bound_prefill():
    # 1 new token on 4,000 cached: reading 0.01 + 4.001; computing 0.031 + 0.8001 a layer
    cost = step_cost()
    with_attention = cost.step(1, 1, 4001, 8001, 0, 0)
    assert with_attention == approx_ms(0.876 + 8.0 + 0.5625 + 32 * 4.011)


@pytest.mark.parametrize("tp", [1, 2])
def test_allreduce_twice_a_layer_from_two_gpus_on(tp):
    # latency 0.01 ms + 8,192 bytes a token at 8.192e9 B/s = 0.001 ms a token, 64 times
    terms = TERMS | {"allreduce": {"latency_ms": 0.01, "bandwidth_bytes_per_s": 8.192e9}}
    with_it, without = step_cost(terms, tp=tp), step_cost(tp=tp)
    extra = with_it.step(2, 30, 30, 500, 0, 0) - without.step(2, 30, 30, 500, 0, 0)
    assert extra == pytest.approx((0.0 if tp == 1 else 64 * 0.04) * MS, abs=2)
    extra = with_it.decode(5).base_fs - without.decode(5).base_fs
    assert extra == pytest.approx((0.0 if tp == 1 else 64 * 0.015) * MS, abs=2)


def test_allreduce_table():
    # 8,192 bytes: 1 token 0.02 ms; 3 tokens lie halfway between 1 and 5
    knots = {"knots_bytes_ms": [[8192, 0.02], [5 * 8192, 0.04]]}
    cost = step_cost(TERMS | {"allreduce": knots}, tp=2)
    extra = cost.decode(3).base_fs - step_cost(tp=2).decode(3).base_fs
    assert extra == pytest.approx(64 * 0.03 * MS, abs=2)


def test_single_steps_lie_on_the_pieces():
    cost = step_cost(min_step_s=0.014)
    for batch in (1, 2, 7, 200):
        for kv in (0, 1, 333, 10_000):
            piece = cost.decode(batch)
            while piece.next is not None and kv >= piece.kv_end:
                piece = piece.next
            assert cost.step(0, 0, 0, 0, batch, kv) == piece.base_fs + piece.slope_fs * kv
    assert cost.decode(7) is cost.decode(7)


def test_floor_is_a_piece_of_its_own():
    terms = {
        "dense": {"lines": [{"base_ms": 10.0}]},
        "decode_attention": [{"kv_token_ms": 0.03125}],
        "layers": 1,
    }
    flat = step_cost(terms, min_step_s=0.012).decode(4)
    rising = flat.next
    # 10 + K/32 reaches 12 at K = 64
    assert (flat.base_fs, flat.slope_fs, flat.kv_end) == (12 * MS, 0, 64)
    assert (rising.base_fs, rising.slope_fs, rising.next) == (10 * MS, MS // 32, None)
    late = step_cost(terms, min_step_s=0.01201)
    assert late.decode(4).kv_end == 65  # 12.01 lies between K = 64 and 65
    assert late.step(0, 0, 0, 0, 4, 64) == 12_010_000_000_000
    assert late.step(0, 0, 0, 0, 4, 65) == 12_031_250_000_000
    assert step_cost(terms, min_step_s=0.010).decode(4).next is None
    assert step_cost(terms, min_step_s=0.012).step(1, 1, 1, 1, 0, 0) == 12 * MS


def test_floor_of_the_profile():
    terms = {
        "host": {"min_step_ms": 12.0},
        "dense": {"lines": [{"base_ms": 10.0}]},
        "decode_attention": [{}],
    }
    piece = step_cost(terms).decode(1)
    assert (piece.base_fs, piece.next) == (12 * MS, None)


def test_least_time_of_steps_whose_kernels_are_started_one_by_one():
    terms = {
        "layers": 1,
        "host": {"step_ms": 1.0, "prefill_step_ms": 0.5, "seq_ms": 0.25},
        "dense": {"lines": [{"base_ms": 2.0, "token_ms": 0.125}]},
        "decode_attention": [{"kv_token_ms": 0.03125}],
        "gamma": 2.0,
        "launch_ms": 6.0,
    }
    cost = step_cost(terms)
    assert cost.decode(4).at(0) == 4.5 * MS  # a graph: 1 + 4 * 0.25 + 2 + 4 * 0.125
    assert cost.step(1, 8, 8, 64, 0, 0) == 7.75 * MS  # 3 on the device: 6; host 1 + 0.5 + 0.25
    assert cost.step(1, 32, 32, 1024, 0, 0) == 7.75 * MS  # 6 on the device
    assert cost.step(1, 40, 40, 1600, 0, 0) == 8.75 * MS  # 7
    assert cost.step(1, 7, 7, 49, 1, 16) == 8.0 * MS  # 3 + 2 * 16/32 = 4 on the device
    assert cost.step(1, 7, 7, 49, 1, 80) == 10.0 * MS  # 3 + 2 * 80/32 = 8
    assert cost.verify_step(1, 4, 4, 16, 1, 16, 3) == 8.0 * MS  # likewise, of 8 tokens
    assert cost.verify_step(1, 4, 4, 16, 1, 80, 3) == 10.0 * MS


def test_two_dense_curves():
    terms = {
        "layers": 1,
        "dense": {"lines": [{"base_ms": 18.0, "token_ms": 0.5}]},
        "dense_decode": {
            "lines": [
                {"base_ms": 20.0, "token_ms": 0.25},
                {"from_tokens": 95, "base_ms": 7.0, "token_ms": 1.0},
            ]
        },
        "decode_attention": [{"kv_token_ms": 0.001}],
        "gamma": 1.5,
    }
    cost = step_cost(terms)
    assert cost.decode(94).base_fs == approx_ms(43.5)
    assert cost.decode(95).base_fs == approx_ms(102.0)
    # 10 new tokens beside 4 decodes on 2,000 tokens: 18 + 14*0.5 + 1.5*2
    assert cost.step(1, 10, 10, 100, 4, 2000) == approx_ms(28.0)


def test_leaving_the_fitted_range_is_marked():
    fitted = {"step_tokens": [1, 512], "batch": [1, 64], "kv_tokens": [0, 1000]}
    cost = step_cost(fitted_range=fitted)
    inside = cost.decode(64)
    assert (inside.kv_end, inside.extrapolated) == (1001, False)
    assert inside.next.extrapolated
    assert (inside.next.base_fs, inside.next.slope_fs) == (inside.base_fs, inside.slope_fs)
    assert cost.decode(65).extrapolated
    assert not cost.extrapolates(448, 64)
    assert cost.extrapolates(449, 64)
    assert cost.extrapolates(10, 65)
    assert not cost.extrapolates(512, 0)


def test_floor_and_fitted_range_together():
    terms = {
        "dense": {"lines": [{"base_ms": 10.0}]},
        "decode_attention": [{"kv_token_ms": 0.03125}],
        "layers": 1,
    }
    piece = step_cost(terms, 0.012, fitted_range={"kv_tokens": [0, 99]}).decode(4)
    chain = []
    while piece is not None:
        chain.append((piece.kv_end, piece.slope_fs, piece.extrapolated))
        piece = piece.next
    assert [c[:2] for c in chain[:2]] == [(64, 0), (100, MS // 32)]
    assert [c[2] for c in chain] == [False, False, True]


def test_a_step_never_costs_less_than_a_femtosecond():
    terms = {
        "dense": {"lines": [{"base_ms": -5.0}]},
        "prefill_attention": {"quad_ms": -1.0},
        "decode_attention": [{}],
    }
    cost = step_cost(terms)
    assert cost.step(1, 10, 10, 100, 0, 0) == 1
    assert cost.step(0, 0, 0, 0, 1, 10) == 1
