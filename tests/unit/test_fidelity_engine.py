"""Engine settings of a measured run, from files and logs."""

import pytest

from sim.study.fidelity.engine_file import (
    Settings,
    from_arguments,
    named_gpu,
    named_model,
    read_engine,
    read_log,
)
from sim.types import BadInput


def test_a_csv_row_is_vllms_own_arguments(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text(
        "run,vllm_version,tensor_parallel_size,max_num_seqs,num_gpu_blocks,block_size,"
        "enable_prefix_caching,enforce_eager,device_name,kv_cache_dtype\n"
        "GPU/Llama-3.1-8B,0.19.0,2,128,,16,true,true,NVIDIA H100 80GB HBM3,fp8\n"
    )
    found = read_engine(path)
    assert found.nested() == {
        "policy": {"max_num_seqs": 128},
        "engine": {"block_size": 16, "enable_prefix_caching": True, "preset": "vllm-0.19"},
        "cluster": {
            "count": 2,
            "pools": [{"role": "mixed", "instances": 1, "tp": 2}],
            "gpu": "h100",
            "model": "llama-3.1-8b",
        },
    }
    assert found.notes == (
        "enforce_eager=True is not modelled",
        "kv_cache_dtype=fp8 is not modelled",
    )
    assert set(found.origins.values()) == {str(path)}


@pytest.mark.parametrize(
    ("version", "preset"), [("0.19.0", "vllm-0.19"), ("0.2.7", "vllm-2023"), ("0.10.2", None)]
)
def test_a_version_chooses_its_preset(version, preset):
    found = from_arguments({"vllm_version": version}, "f")
    assert found.values.get("engine.preset") == preset
    assert bool(found.notes) == (preset is None)


def test_the_row_of_the_run_is_taken(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("run,max_num_seqs\na,1\nb,2\n")
    assert read_engine(path, "b").values["policy.max_num_seqs"] == 2
    with pytest.raises(BadInput, match="--run c: not in"):
        read_engine(path, "c")


def test_yaml_with_sections_or_with_arguments(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("policy: continuous\nengine: {num_gpu_blocks: 9}\nabout: {fitted: {}}\n")
    assert read_engine(path).nested() == {
        "policy": {"name": "continuous"},
        "engine": {"num_gpu_blocks": 9},
    }
    path.write_text("max-num-seqs: 64\nnum_kv_tokens: 3200\nport: 8000\n")
    assert read_engine(path).nested() == {
        "policy": {"max_num_seqs": 64},
        "engine": {"num_gpu_blocks": 200},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour: red\n", "neither sections .* nor arguments of vLLM; has colour"),
        ("engine: {}\nworkload: {}\n", "unknown section 'workload'"),
        ("engine: 3\n", "engine: expected keys, got 3"),
        ("- 1\n", "expected keys and values"),
    ],
)
def test_bad_yaml(tmp_path, text, said):
    path = tmp_path / "e.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_engine(path)


V1_LOG = """
INFO 01-01 [api_server.py:1] vLLM API server version 0.19.0
INFO 01-01 [core.py:1] Initializing a V1 LLM engine (v0.19.0) with config: \
model='meta-llama/Llama-3.1-8B', max_seq_len=8192, tensor_parallel_size=2, \
enable_prefix_caching=True,
INFO 01-01 [kv_cache_utils.py:1] GPU KV cache size: 412,352 tokens
INFO 01-01 [kv_cache_utils.py:1] Maximum concurrency for 8,192 tokens per request: 50x
"""
V0_LOG = "INFO 12-01 llm_engine.py:228] # GPU blocks: 4,134, # CPU blocks: 327\n"


def test_drafts_are_taken_from_sections_and_told_from_arguments(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("speculative: {method: eagle, num_speculative_tokens: 3}\n")
    assert read_engine(path).nested()["speculative"]["num_speculative_tokens"] == 3
    path.write_text("max_num_seqs: 8\nspeculative_config: {method: eagle3}\n")
    (note,) = read_engine(path).notes
    assert note.startswith("speculative_config={'method': 'eagle3'} is not taken over: give spec")
    log = "INFO # GPU blocks: 100\n(model='x', speculative_config="
    path.write_text(f"{log}SpeculativeConfig(method='ngram'))\n")
    (note,) = read_log(path).notes
    assert "(method='ngram') is not taken over" in note
    path.write_text(f"{log}None)\n")
    assert not read_log(path).notes


def test_the_servers_log_tells_the_kv_cache(tmp_path):
    path = tmp_path / "server.log"
    path.write_text(V1_LOG)
    found = read_log(path).nested()
    assert found["engine"] == {
        "num_gpu_blocks": 412_352 // 16,
        "max_model_len": 8192,
        "enable_prefix_caching": True,
        "preset": "vllm-0.19",
    }
    assert found["cluster"]["model"] == "llama-3.1-8b"
    assert found["cluster"]["count"] == 2
    path.write_text(V0_LOG)
    assert read_log(path).nested() == {"engine": {"num_gpu_blocks": 4134}}
    path.write_text("nothing\n")
    with pytest.raises(BadInput, match="no line 'GPU KV cache size: N tokens'"):
        read_log(path)


def test_one_source_lies_over_another():
    above = from_arguments({"max_num_seqs": 8}, "above")
    below = from_arguments({"max_num_seqs": 4, "block_size": 32}, "below")
    both = above.over(below)
    assert both.nested() == {"policy": {"max_num_seqs": 8}, "engine": {"block_size": 32}}
    assert both.origins == {"policy.max_num_seqs": "above", "engine.block_size": "below"}
    whole = Settings({"cluster.pools": [1]}, {"cluster.pools": "x"})
    assert whole.over(Settings({"cluster.pools": [2]}, {"cluster.pools": "y"})).values == {
        "cluster.pools": [1]
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("A100", None),
        ("NVIDIA H200", "h200"),
        ("TPU v5e", None),
    ],
)
def test_devices_as_drivers_call_them(text, name):
    assert named_gpu(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-70B", "llama-3.1-70b"),
        ("facebook/opt-13b", "opt-13b"),
        ("Qwen/Qwen3-30B-A3B", None),
        ("", None),
    ],
)
def test_models_as_the_hub_calls_them(text, name):
    assert named_model(text) == name
