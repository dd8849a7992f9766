"""`bucketsim validate` as a user types it."""

import json
import sys
from pathlib import Path

import pytest

from sim.cli import main
from sim.study.fidelity.bench_file import RECONSTRUCTED

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from fidelity_runs import BASE, served

HOST = ("engine.host_step_ms=2", "engine.host_prefill_ms=6")
BENCH = {
    "model_id": "meta-llama/Llama-2-7b-hf",
    "request_rate": 4.0,
    "burstiness": 1.0,
    "request_throughput": 3.0,
    "input_lens": [100] * 30,
    "output_lens": [4] * 30,
    "ttfts": [0.05] * 30,
    "itls": [[0.02, 0.02, 0.02]] * 30,
    "errors": [""] * 30,
}


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        status = main(["validate", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run.csv"
    served(path, *HOST)
    return path


def test_a_guessed_kv_cache_is_the_first_line(cli, run):
    status, out, _ = cli(run, *BASE, *HOST)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("KV cache size guessed: ")
    assert "60 requests, llama-2-7b on a100-80gb" in lines[1]
    assert "MAPE" in out
    assert "4-15 in flight" in out
    out = cli(run, *BASE, "engine.num_gpu_blocks=2000")[1]
    assert out.startswith("run: 60 requests")


def test_json_is_one_object(cli, run):
    status, out, _ = cli(run, *BASE, *HOST, "slo.ttft_ms=100", "--json")
    assert status == 0
    content = json.loads(out)
    assert next(iter(content)) == "kv_size_guessed"
    assert content["errors"]["ttft"]["mean"]["mape"] == pytest.approx(0, abs=1e-9)
    assert content["errors"]["slo"]["all"]["error"] == 0
    assert content["extrapolated_steps"] == 0
    assert content["arrivals"] == "measured"
    assert content["bands"]


def test_the_folder_has_settings_that_run_again_tables_and_pictures(cli, run, tmp_path, capsys):
    out = tmp_path / "out"
    status, _, err = cli(run, *BASE, *HOST, "slo.ttft_ms=100", "--out", out)
    assert status == 0
    assert "wrote" in err
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.yaml", "validation.json", "figures.csv", "requests.csv", "cdf.png", "cdf.pdf",
    }  # fmt: skip
    assert "host_step_ms: 2.0  # command line" in (out / "config.yaml").read_text()
    assert (out / "cdf.pdf").read_bytes().startswith(b"%PDF")
    assert main(["run", str(out / "config.yaml"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    content = json.loads((out / "validation.json").read_text())
    simulated = content["errors"]["e2el"]["mean"]["simulated"]
    assert again["mean_e2el_ms"] == pytest.approx(simulated)


def test_the_fit_writes_an_engine_file_for_the_next_run(cli, run, tmp_path):
    engine = tmp_path / "engine.yaml"
    names = "host_step_ms,host_prefill_ms"
    status, out, _ = cli(run, *BASE, "--fit", names, "--rows", "0:40", "--write-engine", engine)
    assert status == 0
    assert "fitted on rows 0-39 (40 requests) of run: errors on those rows are of a fit" in out
    assert "fitted on rows 0-39" in engine.read_text()
    content = json.loads(cli(run, "--engine", engine, "--json")[1])
    assert abs(content["errors"]["tpot"]["mean"]["error"]) < 0.01
    assert content["fitted"] is None


def test_a_benchmark_without_start_times(cli, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(BENCH))
    log = tmp_path / "server.log"
    log.write_text("INFO GPU KV cache size: 60,000 tokens\n")
    arguments = (path, "cluster.gpu=a100-80gb", "--server-log", log)
    status, out, err = cli(*arguments)
    assert status == 0
    assert RECONSTRUCTED in err
    assert not out.startswith("KV cache")
    content = json.loads(cli(*arguments, "--json")[1])
    assert content["num_gpu_blocks"] == 3750
    assert content["model"] == "llama-2-7b"
    assert content["bands"] == {}
    assert content["errors"]["ttft"]["mean"]["mape"] is None
    assert RECONSTRUCTED in content["notes"]


def test_settings_with_prefixes_run_again(cli, tmp_path, capsys):
    path, side = tmp_path / "run.csv", tmp_path / "blocks.csv"
    rows = "".join(f"{at},{at / 9},400,20,30,90\n" for at in range(30))
    path.write_text(f"request,arrived_at_s,prompt_tokens,output_tokens,ttft_ms,latency_ms\n{rows}")
    blocks = "".join(f"{at},{';'.join(map(str, range(20)))}\n" for at in range(0, 30, 2))
    side.write_text(f"request,block_ids\n{blocks}")
    means = {}
    for caching in ("true", "false"):
        key = f"engine.enable_prefix_caching={caching}"
        out = tmp_path / caching
        arguments = (path, *BASE, key, "--prefix-blocks", side, "--json", "--out", out)
        content = json.loads(cli(*arguments)[1])
        means[caching] = content["errors"]["ttft"]["mean"]["simulated"]
        assert main(["run", str(out / "config.yaml"), "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["mean_ttft_ms"] == pytest.approx(means[caching])
    assert means["true"] < means["false"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "says nothing about the gpu"),
        ((*BASE, "--rows", "0:40"), "--rows goes with --fit"),
        ((*BASE, "--fit", "gamma"), "'gamma' may not be fitted"),
        ((*BASE, "--fit", "host_step_ms", "--rows", "9"), "expected FIRST:END"),
        ((*BASE, "engine.ttft_clock=engine", "engine.api_latency_ms=3"), "outside the engine's"),
        ((*BASE, "engine.colour=3"), "unknown key 'engine.colour'"),
        ((*BASE, "--run", "b"), "has no column 'run'"),
        ((*BASE, "--engine", "none.yaml"), "none.yaml: no such file"),
        ((*BASE, "--server-log", "none.log"), "none.log: no such file"),
        ((*BASE[:1], "cluster.model=opt-13b", "cluster.profile=llama-2-7b_h100_tp1_vllm-operators"),
         "is for llama-2-7b on h100"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(cli, run, arguments, said):
    status, out, err = cli(run, *arguments)
    assert status == 2
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_result_without_lists_names_the_flag(cli, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"request_throughput": 1.0, "mean_ttft_ms": 3.0}))
    status, _, err = cli(path, *BASE)
    assert status == 2
    assert "--save-detailed" in err
