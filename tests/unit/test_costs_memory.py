"""The catalogue, what fits where, the roofline, and an instance put together."""

import pytest

from sim.costs.build import instance_cost
from sim.costs.catalogue import gpu_named, gpus, model_named, models
from sim.costs.memory import (
    activation_bytes_per_token,
    check_fits,
    check_layout,
    kv_blocks_by_formula,
    min_tp,
    room,
)
from sim.costs.model import StepCost
from sim.costs.roofline import roofline
from sim.types import BadInput

MS = 10**12
LLAMA = model_named("llama-2-13b")
A100 = gpu_named("a100-40gb")


def test_catalogue_is_complete():
    assert sorted(models()) == [
        "codellama-34b", "llama-2-13b", "llama-2-70b", "llama-2-7b", "llama-3.1-70b",
        "llama-3.1-8b", "llama-3.2-1b", "llama-68m", "mistral-7b", "opt-13b", "opt-66b",
        "qwen2.5-0.5b", "qwen2.5-32b", "qwen2.5-7b", "qwen3-32b", "tiny-llama",
    ]  # fmt: skip
    assert sorted(gpus()) == [
        "a100-40gb", "a100-80gb", "cpu", "h100", "h200", "l40s", "rtx-4090", "rtx-pro-6000",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(models()))
def test_parameters_follow_from_the_architecture(name):
    model = model_named(name)
    assert model.params == pytest.approx(model.params_published, rel=1e-3)


def test_parameters_by_hand():
    # 40 layers of 4*5120^2 + 3*5120*13824 + 2*5120, two embeddings of 32000*5120, a norm
    assert LLAMA.params == 13_015_864_320
    assert LLAMA.weight_bytes("fp16") == 26_031_728_640
    # without the input embedding and the norms: 2 * (40*317,194,240 + 163,840,000)
    assert LLAMA.flops_per_token == 2 * (40 * 317_194_240 + 163_840_000)
    assert LLAMA.attention_flops_per_pair == 4 * 40 * 5120


@pytest.mark.parametrize(
    ("name", "tp", "n_bytes"),
    [
        ("llama-2-13b", 1, 819_200),
        ("llama-2-13b", 4, 819_200),
        ("opt-66b", 4, 2_359_296),
        ("llama-3.1-8b", 1, 131_072),
        ("qwen2.5-7b", 4, 57_344),
        ("qwen2.5-7b", 28, 7 * 57_344),  # 28 GPUs, 4 KV heads: each GPU keeps a copy of one
    ],
)
def test_kv_bytes_per_token(name, tp, n_bytes):
    assert model_named(name).kv_bytes_per_token("fp16", tp) == n_bytes


@pytest.mark.parametrize(
    ("call", "name", "text"),
    [
        (model_named, "opt13b", "did you mean 'opt-13b'"),
        (model_named, "gpt-5", "valid: codellama-34b, llama-2-13b"),
        (gpu_named, "A100", "did you mean 'a100-40gb'"),
        (gpu_named, "", "valid: a100-40gb"),
    ],
)
def test_unknown_names(call, name, text):
    with pytest.raises(BadInput, match="unknown") as error:
        call(name)
    assert text in str(error.value)


def test_layouts():
    check_layout(LLAMA, 8, 4)
    check_layout(model_named("opt-66b"), 3)
    for model, tp, pp, text in [
        ("llama-2-13b", 3, 1, "40 heads"),
        ("llama-2-13b", 0, 1, "tp 0"),
        ("llama-2-13b", 1, 3, "40 layers"),
        ("llama-2-13b", 1, 0, "pp 0"),
        ("qwen2.5-7b", 7, 1, "4 KV heads"),
    ]:
        with pytest.raises(BadInput, match=text):
            check_layout(model_named(model), tp, pp)


def test_activations_and_formula():
    # (3*5120 + 3*13824) * 2 bytes
    assert activation_bytes_per_token(LLAMA, "fp16") == 113_664
    # (0.9 * 42,405,855,232 - 26,031,728,640 - 8192 * 113,664) // 13,107,200 = 854.6
    assert kv_blocks_by_formula(LLAMA, A100, 1, 1, "fp16", 16) == 854


def test_room():
    # 42,405,855,232 - 26,031,728,640 - 961 * 13,107,200 = 3,778,107,392 bytes for activations
    shared = room(LLAMA, A100, 1, 1, "fp16", 961, 16)
    assert (shared.block_bytes, shared.max_step_tokens) == (13_107_200, 33_239)
    with pytest.raises(BadInput, match="1 to 1249 blocks"):
        room(LLAMA, A100, 1, 1, "fp16", 1250, 16)
    with pytest.raises(BadInput, match="num_gpu_blocks 0"):
        room(LLAMA, A100, 1, 1, "fp16", 0, 16)


@pytest.mark.parametrize(
    ("model", "gpu", "max_model_len", "tp"),
    [
        ("llama-2-13b", "a100-40gb", None, 1),
        ("opt-66b", "a100-80gb", None, 2),
        ("llama-2-70b", "a100-80gb", None, 2),
        ("llama-3.1-8b", "rtx-4090", None, 2),  # 131,072 tokens are 17 GB of KV cache
        ("llama-3.1-8b", "rtx-4090", 8192, 1),
    ],
)
def test_min_tp(model, gpu, max_model_len, tp):
    assert min_tp(model_named(model), gpu_named(gpu), max_model_len) == tp


def test_what_does_not_fit():
    with pytest.raises(BadInput, match="any tp of 1, 2, 4, 8"):
        min_tp(model_named("llama-3.1-70b"), gpu_named("rtx-4090"))
    with pytest.raises(BadInput) as error:
        check_fits(model_named("llama-2-70b"), A100, 1)
    assert "138.0 GB of fp16 weights, 38.2 GB usable" in str(error.value)
    assert "smallest tp that fits is 4" in str(error.value)
    with pytest.raises(BadInput, match="does not fit 1 x a100-40gb"):
        instance_cost("llama-2-70b", "a100-40gb")


def test_instance_of_a_profile():
    built = instance_cost("opt-13b", "a100-80gb", 2)
    assert built.kv_block_bytes == 16 * 819_200
    assert built.peak_flops_per_s == 624e12
    assert built.max_model_len == 2048
    assert built.notes == ()
    assert built.cost.decode(1).base_fs > 13 * MS


def test_overrides():
    built = instance_cost(
        "llama-2-13b", "a100-40gb", block_size=32, max_model_len=1024, min_step_s=0.0386
    )
    assert (built.block_size, built.num_gpu_blocks) == (32, 480)  # 961 blocks of 16
    assert built.kv_block_bytes == 32 * 819_200
    assert built.max_model_len == 1024
    assert built.cost.step(0, 0, 0, 0, 1, 100) == 38_600_000_000_000
    assert any("derived, not measured" in note for note in built.notes)
    assert instance_cost("llama-2-13b", "a100-40gb", num_gpu_blocks=50).num_gpu_blocks == 50


def test_a_small_cache_is_noted():
    built = instance_cost("llama-2-13b", "a100-40gb", num_gpu_blocks=50)
    assert any("800 tokens, less than max_model_len 4096" in note for note in built.kv_notes)


@pytest.mark.parametrize("length", [0, -1, 4097])
def test_max_model_len_is_bounded(length):
    with pytest.raises(BadInput, match="1 to 4096"):
        instance_cost("llama-2-13b", "a100-40gb", max_model_len=length)


def test_roofline_by_hand():
    cost = StepCost(roofline("llama-2-7b", "h100"), model_named("llama-2-7b"))
    # 32 layers of 202,375,168 parameters, 2 bytes each at 3.35 TB/s: 3.86629 ms; lm_head 0.07825
    assert cost.decode(1).base_fs == pytest.approx(3.944536 * MS, rel=1e-5)
    # 524,288 bytes of KV a token: 1.56504e-4 ms
    assert cost.decode(1).slope_fs == pytest.approx(1.56504e-4 * MS, rel=1e-5)
    # compute bound: 1000 * 2 * 6,476,005,376 / 989.5e12 = 13.08945 ms; lm_head of one row
    # attention 32 layers * 2 * 4096 * 1e6 / 989.5e12 = 0.264925 ms
    one_prompt = cost.step(1, 1000, 1000, 10**6, 0, 0)
    assert one_prompt == pytest.approx((13.08945 + 0.07825 + 0.264925) * MS, rel=1e-5)


def test_roofline_splits_over_gpus_and_pays_the_link():
    one = StepCost(roofline("llama-2-7b", "h100"), model_named("llama-2-7b"))
    two = StepCost(roofline("llama-2-7b", "h100", 2), model_named("llama-2-7b"))
    # ring of two: the whole message once over 450 GB/s; 64 messages of 8,192 bytes a token
    link_ms = 64 * 8192 / 450e9 * 1e3
    assert two.decode(1).base_fs / MS == pytest.approx(one.decode(1).base_fs / 2 / MS + link_ms)
    assert two.decode(1).slope_fs == pytest.approx(one.decode(1).slope_fs / 2, abs=1)


def test_roofline_efficiency_is_an_assumption():
    half = StepCost(
        roofline("llama-2-7b", "h100", bandwidth_efficiency=0.5), model_named("llama-2-7b")
    )
    assert half.decode(1).base_fs == pytest.approx(2 * 3.944536 * MS, rel=1e-5)


def test_roofline_works_for_any_pair_and_says_so():
    for model in models():
        for gpu in gpus():
            try:
                tp = min_tp(model_named(model), gpu_named(gpu), 2048)
            except BadInput:
                continue
            built = instance_cost(model, gpu, tp, profile_name="roofline")
            assert not built.profile.measured
            assert any("not measured" in note for note in built.notes)
            assert any("formula" in note for note in built.kv_notes)
            assert built.max_step_tokens >= 8192
    with pytest.raises(BadInput, match="pp 2"):
        roofline("llama-2-7b", "h100", 1, 2)
