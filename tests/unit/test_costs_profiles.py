"""The shipped profiles against the published figures, and how profiles are found and refused."""

import csv
import gzip
from pathlib import Path

import pytest

from sim.costs.build import instance_cost
from sim.costs.catalogue import gpus, model_named, models
from sim.costs.library import PROFILE_DIR, find_profile, list_profiles
from sim.costs.model import StepCost
from sim.costs.profile import describe_profile, load_profile, profile_hash, profile_stem
from sim.types import BadInput

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MS = 10**12

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")


def cost_of(name):
    profile = load_profile(PROFILE_DIR / f"{name}.yaml")
    return StepCost(profile, model_named(profile.model))


def prefill_ms(cost, *lens):
    quad = sum(n * n for n in lens)
    return cost.step(len(lens), sum(lens), sum(lens), quad, 0, 0) / MS


def decode_ms(cost, batch, kv):
    return cost.step(0, 0, 0, 0, batch, kv) / MS


@pytest.mark.parametrize(
    ("tokens", "ms"), [(64, 24.7), (256, 44.7), (512, 72.1), (1024, 129.9), (2048, 256.7)]
)
def test_published_prefill_of_one_prompt(tokens, ms):
    # spec/distserve.md section 3, without the 3 ms + 1e-4 ms a token of the Ray call
    cost = cost_of("opt-13b_a100-80gb_tp1_distserve")
    assert prefill_ms(cost, tokens) - 3 - 1e-4 * tokens == pytest.approx(ms, abs=0.05)


@pytest.mark.parametrize(("batch", "ms"), [(1, 20.2), (16, 23.6), (64, 34.4)])
def test_published_decode_at_300_tokens(batch, ms):
    # context 300 = 299 cached + 1; Ray call 2 ms + 1e-4 ms a cached token
    cost = cost_of("opt-13b_a100-80gb_tp1_distserve")
    ray = 2 + 1e-4 * 299 * batch
    assert decode_ms(cost, batch, 299 * batch) - ray == pytest.approx(ms, abs=0.05)


def test_large_batches_use_the_other_row():
    cost = cost_of("opt-13b_a100-80gb_tp1_distserve")
    # 7.1662 + 5.798e-4 * (30000 + 100) + 0.158311 * 100 + 2 + 3 = 45.449
    assert decode_ms(cost, 100, 30_000) == pytest.approx(45.449, abs=1e-3)


def test_llama_is_opt_with_decode_scaled():
    opt = cost_of("opt-13b_a100-80gb_tp2_distserve")
    llama = cost_of("llama-2-13b_a100-40gb_tp2_distserve-scaled")
    assert prefill_ms(llama, 700, 80) == pytest.approx(prefill_ms(opt, 700, 80) - 3 - 0.078)
    # 1.31 * (13.29480 + 3.41092e-4 * 4020) + 0.0629639 * 20 = 20.4717
    assert decode_ms(llama, 20, 4000) == pytest.approx(20.4717, abs=1e-3)


def test_recommended_vllm_profile():
    cost = cost_of("opt-13b_a100-80gb_tp1_vllm")
    # distserve prefill row, host 1 + 10 + 0.3: 18.1025 + 104.3581 + 7.4682 + 11.3 = 141.2289
    assert prefill_ms(cost, 1024) == pytest.approx(141.2289, abs=1e-3)
    # vllm decode row, host 1 + 0.3*8: 23.4750 + 5.92934e-4*4008 + 0.0607269*8 + 3.4 = 29.7373
    assert decode_ms(cost, 8, 4000) == pytest.approx(29.7373, abs=1e-3)


def test_mixed_step_of_a_whole_forward_fit():
    cost = cost_of("llama-2-13b_a100-40gb_tp1_distserve-scaled")
    # 18.10255 + 0.101912*(100 + 4) + 7.12e-6*10000 + 1.5 * 1.31*6.26936e-4*(2000 + 4) = 31.2415
    assert cost.step(1, 100, 100, 10_000, 4, 2000) / MS == pytest.approx(31.2415, abs=1e-3)


@needs_data
def test_coefficients_are_the_published_ones():
    with open(DATA / "profiles" / "distserve_fitted_coefficients_a100_80gb.csv") as file:
        rows = list(csv.DictReader(file))
    checked = 0
    for row in rows:
        engine = "distserve" if row["engine"] == "distserve" else "vllm-published"
        model = row["model"].removeprefix("facebook/")
        cost = cost_of(f"{profile_stem(model, 'a100-80gb', int(row['tp']))}_{engine}")
        a, b, c = (float(row[key]) for key in ("a_ms", "b_ms_per_token", "c"))
        if row["phase"] == "prefill":
            squares = max(0.0, c) * (300**2 + 50**2)
            expected = a + b * 350 + squares + 3 + 0.035
            assert prefill_ms(cost, 300, 50) == pytest.approx(expected, rel=1e-9)
        else:
            batch = 94 if row["phase"] == "decoding_smallbs" else 95
            expected = a + b * (20_000 + batch) + c * batch + 2 + 2.0
            assert decode_ms(cost, batch, 20_000) == pytest.approx(expected, rel=1e-9)
        checked += 1
    assert checked == 42


@needs_data
def test_every_iteration_of_distserves_own_simulator():
    cost = cost_of("opt-13b_a100-80gb_tp1_distserve")
    path = DATA / "peers" / "simdistserve_distserve_q2_n1000_iterations.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14_793
    for row in rows:
        if row["event_type"] == "do_prefill":
            new = int(row["prefill_tokens"])
            fs = cost.step(int(row["prefill_bs"]), new, new, int(row["prefill_sq"]), 0, 0)
        else:
            fs = cost.step(0, 0, 0, 0, int(row["decode_bs"]), int(row["decode_ctx_sum"]))
        assert abs(fs / MS - float(row["duration_ms"])) < 1.0001e-4, row


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "tokens"),
    [
        ("opt-13b", "a100-80gb", 1, 66_144),
        ("opt-13b", "a100-80gb", 2, 163_008),
        ("opt-13b", "a100-80gb", 4, 356_736),
        ("opt-66b", "a100-80gb", 2, 11_600),
        ("opt-66b", "a100-80gb", 3, 45_056),
        ("opt-66b", "a100-80gb", 4, 78_496),
        ("opt-66b", "a100-80gb", 8, 212_304),
        ("llama-2-13b", "a100-40gb", 1, 15_380),
        ("llama-2-13b", "a100-40gb", 2, 59_326),
        ("llama-2-13b", "a100-40gb", 4, 147_216),
    ],
)
def test_kv_capacity(model, gpu, tp, tokens):
    built = instance_cost(model, gpu, tp)
    assert built.block_size == 16
    assert built.num_gpu_blocks == tokens // 16


def test_shipped_profiles_are_consistent():
    profiles = list_profiles()
    assert sum(p.engine != "vllm-operators" for p in profiles) == 19
    layouts = {(p.model, p.gpu, p.tp, p.pp) for p in profiles}
    for profile in profiles:
        assert profile.model in models()
        assert profile.gpu in gpus()
        suffix = profile.name.removeprefix(
            profile_stem(profile.model, profile.gpu, profile.tp, profile.pp) + "_"
        )
        assert suffix == profile.engine
        built = instance_cost(profile.model, profile.gpu, profile.tp, profile_name=profile.name)
        assert built.profile is profile
        assert built.max_step_tokens >= 2048
        assert prefill_ms(built.cost, 1) > 1
        assert prefill_ms(built.cost, 2048) > prefill_ms(built.cost, 1024)
    for layout in layouts:
        assert sum(p.default for p in profiles if (p.model, p.gpu, p.tp, p.pp) == layout) == 1
    assert len({profile_hash(p) for p in profiles}) == len(profiles)


def test_names():
    assert find_profile("opt-13b", "a100-80gb", 1).engine == "distserve"
    assert find_profile("opt-13b", "a100-80gb", 1, name="vllm").engine == "vllm"
    full = "opt-13b_a100-80gb_tp2_vllm-published"
    assert find_profile("opt-13b", "a100-80gb", 2, name=full).name == full


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (
            ("opt-13b", "a100-80gb", 5),
            ["opt-13b on a100-80gb tp 5", "tp4_distserve", "--roofline"],
        ),
        (("opt-13b", "l40s", 1), ["opt-13b on l40s", "opt-13b_a100-80gb_tp1_vllm"]),
        (("gpt", "a100-40gb", 4), ["for a100-40gb there is: llama-2-13b_a100-40gb_tp1"]),
        (("gpt", "tpu", 1), ["other models and GPUs", "codellama-34b_a100-80gb_tp1", "more (`"]),
        (("opt-13b", "a100-80gb", 1, 2), ["tp 1 pp 2"]),
        (("opt-13b", "a100-80gb", 1, 1, "sglang"), ["named 'sglang'", "tp1_distserve"]),
        (
            ("opt-13b", "a100-80gb", 1, 1, "opt-66b_a100-80gb_tp4_distserve"),
            ["is for opt-66b on a100-80gb tp 4", "asks for opt-13b"],
        ),
    ],
)
def test_what_does_not_exist_is_listed(arguments, texts):
    with pytest.raises(BadInput) as error:
        find_profile(*arguments)
    assert "\n" not in str(error.value)
    for text in texts:
        assert text in str(error.value)


def test_a_users_file(tmp_path):
    shipped = PROFILE_DIR / "opt-13b_a100-80gb_tp1_distserve.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text(shipped.read_text().replace("num_gpu_blocks: 4134", "num_gpu_blocks: 1000"))
    built = instance_cost("opt-13b", "a100-80gb", profile_name=str(mine))
    assert built.profile.name == "mine"
    assert built.num_gpu_blocks == 1000


BAD_EDITS = [
    ("tp: 1", "tp: one", ["tp:", "'one'"]),
    ("tp: 1", "tp: 0", ["tp:", "got 0"]),
    ("tp: 1", "tpp: 1", ["unknown key 'tpp'", "valid:", "num_gpu_blocks"]),
    ("gamma: 1.5", "gama: 1.5", ["unknown key 'terms.gama'", "valid:", "gamma"]),
    ("gamma: 1.5", "gamma: .nan", ["terms.gamma"]),
    ("step_ms: 2.0", "step_ms: -2.0", ["terms.host.step_ms", "-2.0"]),
    ("step_ms: 2.0", "stp_ms: 2.0", ["terms.host.stp_ms", "valid:", "prefill_step_ms"]),
    ("from_tokens: 95", "from_tokens: 0", ["terms.dense_decode", "rise"]),
    ("from_tokens: 95", "from_token: 95", ["terms.dense_decode.lines.1.from_token", "token_ms"]),
    ("from_batch: 95, kv_token_ms: 0", "from_batch: 95, kv_token_ms: -0", ["kv_token_ms"]),
    ("model: opt-13b\n", "", ["key 'model' is missing"]),
    ("basis: measured", "basis: guessed", ["basis", "measured", "guessed"]),
    ("num_gpu_blocks: 4134", "num_gpu_blocks: [", ["not a YAML file"]),
    ("gpu: a100-80gb", "gpu: h100", ["is for opt-13b on h100", "asks for opt-13b on a100-80gb"]),
]


@pytest.mark.parametrize(("old", "new", "texts"), BAD_EDITS)
def test_a_users_file_with_a_mistake(tmp_path, old, new, texts):
    text = (PROFILE_DIR / "opt-13b_a100-80gb_tp1_distserve.yaml").read_text()
    assert old in text
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput) as error:
        find_profile("opt-13b", "a100-80gb", 1, name=str(mine))
    assert "\n" not in str(error.value)
    for part in ["mine", *texts]:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"- 1\n", b"42", b"\xff\xfe\x00bad", b"!!python/object/apply:os.getcwd []",
        b"1: 2\n", b"{" * 3000,
    ],
)  # fmt: skip
def test_a_file_that_is_no_profile(tmp_path, content):
    mine = tmp_path / "mine.yaml"
    mine.write_bytes(content)
    with pytest.raises(BadInput, match=r"mine\.yaml") as error:
        load_profile(mine)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        find_profile("opt-13b", "a100-80gb", 1, name=str(tmp_path / "none.yaml"))
    with pytest.raises(BadInput, match="cannot be read"):
        find_profile("opt-13b", "a100-80gb", 1, name=f"{tmp_path}/")


def test_hash_follows_content():
    profile = find_profile("opt-13b", "a100-80gb", 1)
    other = profile.model_copy(update={"num_gpu_blocks": 1})
    assert profile_hash(profile) == profile_hash(profile.model_copy())
    assert profile_hash(profile) != profile_hash(other)


def test_description_is_plain_data():
    described = describe_profile(find_profile("llama-2-13b", "a100-40gb", 1))
    assert described["measured"] is False
    assert described["kv_tokens"] == 961 * 16
    assert "1.31" in described["derivation"]
    assert list(described)[-1] == "terms"
