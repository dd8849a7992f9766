"""Presets: what they set, who wins over them, and that everything says where it comes from."""

import json
from pathlib import Path

import pytest
import yaml

import policies
from sim.study.build import build
from sim.study.config import EngineConfig, more_policies, resolve
from sim.study.presets import names, preset_named
from sim.study.provenance import config_text, settings_of
from sim.types import BadInput

PAGE = Path(__file__).parents[2] / "docs" / "engine.md"
SMALL, LARGE = "a100-80gb", "h100"
CONFIG = {
    "cluster": {"gpu": SMALL, "count": 2, "model": "opt-13b"},
    "workload": {
        "source": "sharegpt",
        "num_requests": 10,
        "max_model_len": 2048,
        "arrivals": {"process": "poisson", "rate": 1},
    },
}


def resolved(engine, *overrides, **sections):
    return resolve({**CONFIG, **sections, "engine": engine}, "test.yaml", overrides)


def built(engine, **sections):
    found = resolved(engine, **sections)
    return build(found, found.policies[0])


@pytest.mark.parametrize("gpu", [SMALL, LARGE])
@pytest.mark.parametrize("name", names())
def test_every_preset_is_valid_and_sourced(name, gpu):
    preset = preset_named(name)
    assert preset.about
    engine = preset.engine_values(gpu)
    assert EngineConfig(**engine).model_fields_set == set(engine)
    params = preset.params_of(preset.policy, gpu)
    config = policies.load(preset.policy).Config
    assert config(**params).model_fields_set == set(params)
    for value in [*preset.engine.values(), *preset.params.values()]:
        assert len(value.source) > 10
    assert built({"preset": name}).instances


def test_the_page_shows_every_value():
    rows = {line for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    wanted = set()
    for name in names():
        preset = preset_named(name)
        keys = {f"engine.{key}": value for key, value in preset.engine.items()}
        keys |= {f"policy.{key}": value for key, value in preset.params.items()}
        wanted.add(f"| `{name}` | `policy.name` | {preset.policy} |")
        for key, of in keys.items():
            shown = of.value if isinstance(of.value, str) else json.dumps(of.value)
            if of.large_gpu != of.value:
                shown = f"{shown} ({of.large_gpu} on GPUs of 70 GiB and more, A100 excepted)"
            wanted.add(f"| `{name}` | `{key}` | {shown} |")
    assert {row for row in rows if row.split("`")[1] in names()} == wanted


def test_vllm_0_19_schedules_ahead_and_chooses_by_gpu():
    found = resolved({"preset": "vllm-0.19"})
    engine, params = found.engine, found.policies[0].params
    assert engine.async_scheduling
    assert engine.scheduler_reserve_full_isl
    assert engine.null_block
    # The A100's 80 GB count as small, as in vLLM.
    assert (params.max_num_seqs, params.max_num_batched_tokens) == (256, 2048)
    large = resolved({"preset": "vllm-0.19"}, cluster=CONFIG["cluster"] | {"gpu": LARGE})
    params = large.policies[0].params
    assert (params.max_num_seqs, params.max_num_batched_tokens) == (1024, 8192)


def test_vllm_of_2023_is_v0():
    found = resolved({"preset": "vllm-2023"})
    params = found.policies[0].params
    assert (params.scheduler, params.max_num_batched_tokens) == ("v0", 16384)
    assert (found.engine.async_scheduling, found.engine.null_block) == (False, False)


def test_config_and_command_line_win():
    engine = {"preset": "vllm-0.19", "null_block": False}
    policy = {"name": "continuous", "max_num_seqs": 7}
    found = resolved(engine, "engine.block_size=32", policy=policy)
    assert (found.engine.null_block, found.engine.block_size) == (False, 32)
    assert found.policies[0].params.max_num_seqs == 7
    origins = {
        "engine.null_block": "test.yaml",
        "engine.block_size": "command line",
        "engine.async_scheduling": "preset vllm-0.19",
        "engine.router": "default",
        "engine.preset": "test.yaml",
        "policy.0.max_num_seqs": "test.yaml",
        "policy.0.max_num_batched_tokens": "preset vllm-0.19",
        "policy.0.queue": "default",
    }
    assert {key: found.origin(key) for key in origins} == origins
    told = settings_of(found, build(found, found.policies[0]))
    assert {key: told[key]["from"] for key in origins} == origins
    assert told["engine.block_size"]["value"] == 32


def test_a_policy_without_a_name_is_the_presets():
    found = resolved({"preset": "distserve"}, "policy.max_prefill_seqs=4")
    (choice,) = found.policies
    assert (choice.name, choice.params.max_prefill_seqs) == ("distserve", 4)
    assert found.origin("policy.0.name") == "preset distserve"


def test_other_policies_keep_their_own_values():
    found = resolved({"preset": "vllm-0.19"}, policy=["continuous", "sarathi"])
    own = policies.load("sarathi").Config()
    assert [p.params.max_num_seqs for p in found.policies] == [256, own.max_num_seqs]
    assert [p.key for p in found.policies] == ["policy.0", "policy.1"]
    (added,) = more_policies(resolved({"preset": "vllm-2023"}), ["continuous"], "--policies")
    assert added.params.scheduler == "v0"


def test_the_resolved_config_runs_again_to_the_same():
    found = resolved({"preset": "vllm-0.19"}, "engine.api_latency_ms=3")
    text = config_text(found, build(found, found.policies[0]))
    assert "  async_scheduling: true  # preset vllm-0.19" in text.splitlines()
    again = resolve(yaml.safe_load(text), "config.yaml")
    assert again.resolved() == found.resolved()
    assert again.origin("engine.async_scheduling") == "config.yaml"


@pytest.mark.parametrize(
    ("engine", "sections", "said"),
    [
        ({"preset": "vllm-9"}, {}, "test.yaml: engine.preset: 'vllm-9' is no preset; valid: "),
        ({"preset": 0.19}, {}, "test.yaml: engine.preset: 0.19 is no preset; valid: "),
        (
            {"preset": "vllm-0.19"},
            {"policy": "static"},
            "preset vllm-0.19: engine.async_scheduling true: policy 'static' runs static batches",
        ),
        (
            {"preset": "vllm-0.19"},
            {"policy": {"name": "continuous", "watermark": 0.1}},
            "test.yaml: policy: watermark=0.1 has no meaning with scheduler: v1",
        ),
        (
            {"ttft_clock": "engine", "api_latency_ms": 4},
            {"policy": "continuous"},
            "test.yaml: engine.api_latency_ms 4 lies outside the engine's clock",
        ),
    ],
)
def test_contradictions_are_one_line(engine, sections, said):
    with pytest.raises(BadInput) as error:
        built(engine, **sections)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
