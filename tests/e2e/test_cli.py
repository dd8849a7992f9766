"""Commands as a user types them: what they print, what they leave behind, how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import policies
from sim.cli import main
from sim.core import simulation
from sim.types import Deadlock

CONFIG = """
cluster: {gpu: a100-40gb, count: 2, model: llama-2-13b}
policy: [static, {name: continuous, max_num_seqs: 64}]
workload: {source: alpaca, num_requests: 40, arrivals: {process: poisson, rate: 5}}
slo: {ttft_ms: 1000}
"""
COMMAND = [sys.executable, "-m", "sim.cli"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def cli(capsys):
    """Return a function that runs a command and returns (status, stdout, stderr)."""

    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "timing.json"
    }


# -- run and compare ----------------------------------------------------------------------------


def test_run_prints_a_table_and_notices(cli, config):
    status, out, err = cli("run", config, "policy=static")
    assert status == 0
    assert "TTFT p99" in out
    assert "n=5 replications" in out
    assert "note: step times of llama-2-13b" in err


def test_json_is_one_object_on_stdout(cli, config):
    status, out, _ = cli("run", config, "policy=static", "run.replications=1", "--json")
    assert status == 0
    summary = json.loads(out)
    assert (summary["completed"], summary["n_replications"]) == (40, 1)
    assert summary["mean_ttft_ms_ci_low"] is None


def test_run_writes_its_folder_and_a_timeline(cli, config, tmp_path):
    out = tmp_path / "a" / "out"
    timeline = tmp_path / "b" / "timeline.json"
    status, *_ = cli(
        "run", config, "policy=continuous", "run.steps=true", "--out", out, "--timeline", timeline
    )
    assert status == 0
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "summary.json", "requests.parquet", "steps.parquet", "timing.json",
    }  # fmt: skip
    assert json.loads(timeline.read_text())["traceEvents"]


def test_compare_prints_differences_and_draws_a_picture(cli, config, tmp_path):
    status, out, err = cli("compare", config, "run.replications=2", "--out", tmp_path / "out")
    assert status == 0
    assert "difference" in out
    assert "comparison.png" in err
    assert err.count("note: static, continuous: step times of ") == 1
    assert (tmp_path / "out" / "comparison.png").is_file()


def test_compare_takes_policies_from_the_list_and_the_registry(cli, config):
    status, out, _ = cli(
        "compare", config, "policy=continuous", "policy.scheduler=v0",
        "--policies", "static,continuous", "--baseline", "continuous", "--json",
    )  # fmt: skip
    assert status == 0
    comparison = json.loads(out)
    assert list(comparison["policies"]) == ["static", "continuous"]
    assert comparison["baseline"] == "continuous"
    assert list(comparison["differences"]) == ["static"]


def test_the_same_config_gives_the_same_bytes_serial_or_parallel(cli, config, tmp_path):
    for name, jobs in (("one", 1), ("two", 2)):
        arguments = ["compare", config, "run.replications=2", "run.steps=true", "--jobs", jobs]
        assert cli(*arguments, "--out", tmp_path / name)[0] == 0
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert set(one) == {
        "comparison.json",
        "comparison.png",
        *[
            f"{label}/{name}"
            for label in ("static", "continuous")
            for name in ("config.yaml", "summary.json", "requests.parquet", "steps.parquet")
        ],
    }
    assert one == two


def test_another_process_with_another_hash_seed_gives_the_same_bytes(config, tmp_path):
    for seed in ("1", "2"):
        command = [*COMMAND, "run", config, "policy=continuous", "--out", str(tmp_path / seed)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, check=True, capture_output=True, env=environment)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_precision_adds_replications(cli, config):
    status, out, err = cli(
        "run", config, "policy=static", "--precision", "1%", "--of", "mean_e2el_ms",
        "--max-replications", "12", "--json",
    )  # fmt: skip
    assert status == 0
    assert json.loads(out)["n_replications"] == 12
    assert "note: precision 1 % not reached with 12 replications" in err


def test_roofline_works_for_any_pair_and_says_so(cli, config):
    status, out, err = cli(
        "run", config, "policy=continuous", "cluster.gpu=h200", "cluster.model=qwen3-32b",
        "--roofline", "--json",
    )  # fmt: skip
    assert status == 0
    assert "not measured" in err
    assert any("not measured" in note for note in json.loads(out)["notes"])


def test_the_example_config_is_valid(cli):
    status, out, _ = cli(
        "compare", "examples/sharegpt.yaml", "workload.num_requests=50", "run.replications=2",
        "--policies", "static,continuous",
    )  # fmt: skip
    assert status == 0
    assert "continuous" in out


# -- lists and workloads ------------------------------------------------------------------------


def test_policies_are_listed_and_described(cli):
    status, out, _ = cli("policies")
    assert status == 0
    assert all(name in out for name in policies.names())
    status, out, _ = cli("policies", "static")
    assert status == 0
    assert "Static (request-level) batching" in out
    assert "max_batch_size" in out
    described = json.loads(cli("policies", "continuous", "--json")[1])
    budget = next(p for p in described["parameters"] if p["parameter"] == "max_num_seqs")
    assert (budget["default"], budget["allowed"]) == ("256", ">= 1")


def test_a_decision_table_is_drawn(cli, tmp_path):
    picture = tmp_path / "new" / "table.png"
    status, out, err = cli("policies", "smdp", "load_bands=3", "--table", "--out", str(picture))
    assert status == 0
    assert "load 0.50: wait for 7, then serve up to 32" in out
    assert out.count("\n") == 3
    assert str(picture) in err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_profiles_are_listed_and_shown(cli):
    status, out, _ = cli("profiles")
    assert status == 0
    assert "opt-13b_a100-80gb_tp1_distserve" in out
    status, out, _ = cli("profiles", "opt-13b_a100-80gb_tp1_distserve")
    assert status == 0
    assert "source:" in out
    shown = json.loads(cli("profiles", "opt-13b_a100-80gb_tp1_distserve", "--json")[1])
    assert shown["gpu"] == "a100-80gb"
    assert shown["name"] in json.loads(cli("profiles", "--json")[1])


def test_a_workload_can_be_generated_described_converted_and_run(cli, config, tmp_path):
    trace, plain = tmp_path / "trace.csv", tmp_path / "plain.parquet"
    poisson = "arrivals={process: poisson, rate: 4}"
    assert cli("workload", "generate", "sharegpt", trace, poisson, "-n", 30)[0] == 0
    assert cli("workload", "convert", trace, plain)[0] == 0
    status, out, _ = cli("workload", "describe", plain, "--plot", tmp_path / "lengths.png")
    assert status == 0
    assert "30 requests over" in out
    assert "input_len" in out
    assert "█" in out
    assert (tmp_path / "lengths.png").is_file()
    described = json.loads(cli("workload", "describe", plain, "--json")[1])
    assert described["n"] == 30
    status, out, _ = cli("run", config, "policy=static", f"workload={{source: {plain}}}", "--json")
    assert json.loads(out)["completed"] == 30


def test_describing_a_distribution_draws_from_it(cli):
    described = json.loads(cli("workload", "describe", "alpaca", "--json")[1])
    assert (described["n"], described["span_s"]) == (10_000, None)


def test_data_sets_are_listed(cli):
    status, out, _ = cli("workload", "fetch")
    assert status == 0
    assert "azure2023-conv: https://" in out


# -- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["nope"], "No such command 'nope'"),
        (["run"], "Missing argument 'CONFIG'"),
        (["run", "CONFIG", "--nope"], "No such option: --nope"),
        (["run", "CONFIG", "--jobs", "0"], "--jobs"),
        (["run", "none.yaml"], "none.yaml: cannot be read: No such file"),
        (["run", "CONFIG"], "run takes one policy"),
        (["run", "CONFIG", "policy=statik"], "did you mean 'static'?"),
        (["run", "CONFIG", "policy=static", "run.sed=1"], "did you mean 'seed'?"),
        (["run", "CONFIG", "policy=static", "--out", "CONFIG/x"], "cannot be made"),
        (["run", "CONFIG", "policy=static", "--timeline", "."], ".: is a folder; name a file"),
        (["run", "CONFIG", "policy=static", "workload.source=none.csv"], "none.csv"),
        (
            ["run", "CONFIG", "policy=static", "workload.arrivals.rate=1e-300"],
            "workload.arrivals: the last request would arrive at ",
        ),
        (["run", "CONFIG", "policy=static", "--precision", "2x"], "--precision: '2x'; valid: "),
        (["run", "CONFIG", "policy=static", "--of", "duration"], "--precision is missing"),
        (
            ["compare", "CONFIG", "--precision", "2%", "--of", "p99_ttf_ms"],
            "did you mean 'p99_ttft_ms'?",
        ),
        (["compare", "CONFIG", "--policies", "static,nope"], "unknown policy 'nope'"),
        (["compare", "CONFIG", "--policies", ","], "valid: ascendra, "),
        (["compare", "CONFIG", "--baseline", "nope"], "valid: static, continuous"),
        (["policies", "nope"], "unknown policy 'nope'"),
        (["policies", "--table"], "which policy?"),
        (["policies", "static", "--table"], "decides by no table; valid: smdp"),
        (["policies", "smdp", "load_bands=3"], "'load_bands=3': parameters go with --table only"),
        (["policies", "smdp", "--table", "load_band=3"], "did you mean 'load_bands'?"),
        (["policies", "smdp", "--table", "max_waiting=3"], "max_waiting=3 must be at least"),
        (["policies", "smdp", "--table", "--out", "x.svg"], "'x.svg': expected a file name ending"),
        (["run", "CONFIG", "policy=ascendra", "policy.high_share=1"], "policy.high_share"),
        (["profiles", "nope"], "unknown profile 'nope'"),
        (["profiles", "llama-2-7b_h100_tp1_vllm-operators", "--picture", "."], "is a folder"),
        (["workload", "describe", "none.csv"], "none.csv"),
        (["workload", "convert", "none.csv", "out.csv"], "none.csv"),
        (["workload", "generate", "alpaca", "out.csv", "num_request=3"], "'num_requests'"),
        (["workload", "fetch", "nope"], "nope"),
    ],
)
def test_bad_input_is_one_line_and_status_2(cli, config, arguments, said):
    status, out, err = cli(*[argument.replace("CONFIG", config) for argument in arguments])
    assert status == 2
    assert out == ""
    assert err.startswith("bucketsim: error: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_failed_simulation_is_one_line_and_status_1(cli, config, monkeypatch):
    def stuck(self):
        raise Deadlock("instance 0 is stuck")

    monkeypatch.setattr(simulation.Simulation, "run", stuck)
    status, out, err = cli("run", config, "policy=static")
    assert (status, out, err) == (1, "", "bucketsim: error: instance 0 is stuck\n")


def test_a_failed_run_leaves_no_file(cli, config, monkeypatch, tmp_path):
    def broken(*_):
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr("os.replace", broken)
    status, _, err = cli("run", config, "policy=static", "--out", tmp_path / "out")
    assert status in (1, 2)
    assert "No space left on device" in err
    assert list((tmp_path / "out").iterdir()) == []


def wait_for_work(pid, seconds):
    """Wait until a process has worked so long: a busy machine may not have let it start yet."""
    ticks = os.sysconf("SC_CLK_TCK")
    worked_s = 0.0
    while worked_s < seconds:
        time.sleep(0.1)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        worked_s = (int(fields[11]) + int(fields[12])) / ticks


def test_interrupted_is_status_130(config):
    command = [*COMMAND, "run", config, "policy=continuous", "workload.num_requests=3000000"]
    # Shells let what they run in the background ignore SIGINT, and children inherit that.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            wait_for_work(process.pid, 1.5)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    # Python ends by the signal itself where the interrupt went through a nested evaluation, as in
    # some imports, though it was caught; a shell shows 130 for both.
    assert process.returncode in (130, -signal.SIGINT)
    assert err == "bucketsim: error: interrupted\n"


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys; from sim.cli import main; main(['--help']); "
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'matplotlib', 'scipy', 'pydantic', "
        "'simpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "compare" in done.stdout
    assert done.stderr.strip() == "[]"


def test_version(cli):
    from sim import __version__
    from sim.form import core_form

    assert cli("--version") == (0, f"bucketsim {__version__} ({core_form()} core)\n", "")
