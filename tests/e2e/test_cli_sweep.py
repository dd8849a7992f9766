"""`sweep` and `results` as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.cli import main
from sim.study.sweeps import task as sweep_task
from sim.types import Deadlock

CONFIG = """
cluster: {gpu: a100-40gb, count: 2, model: llama-2-13b}
policy: {name: continuous}
workload: {source: alpaca, num_requests: 20, arrivals: {process: poisson, rate: 5}}
slo: {ttft_ms: 1000}
run: {replications: 2}
sweep:
  policy.name: [continuous, static]
  policy.max_batch_size: [2, 4]
"""
COMMAND = [sys.executable, "-m", "sim.cli"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def cli(capsys):
    """Return a function that runs a command and returns (status, stdout, stderr)."""

    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


def test_dry_run_prints_the_tasks_and_a_time(cli, config, tmp_path):
    status, out, err = cli("sweep", config, "--dry-run", "--jobs", 2)
    assert status == 0
    assert "6 tasks, the first took" in out
    assert "with 2 at a time" in out
    assert "derived, not measured on this hardware (3 of 3 points)" in err
    assert out.count("static") == 8
    assert not (tmp_path / "study-sweep").exists()
    status, out, _ = cli("sweep", config, "--dry-run", "--json")
    plan = json.loads(out)
    assert len(plan["tasks"]) == 6
    assert plan["estimated_s"] > 0


def test_sweep_results_and_resume(cli, config, tmp_path):
    status, out, err = cli("sweep", config, "--jobs", 1)
    assert status == 0
    assert "6 tasks run" in err
    assert "policy.max_batch_size" in out
    folder = tmp_path / "study-sweep"
    status, again, _ = cli("results", folder)
    assert (status, again) == (0, out)
    status, out, err = cli("sweep", config, "--jobs", 1)
    assert (status, out) == (2, "")
    assert "has 6 finished shards; go on with --resume" in err
    next((folder / "shards").iterdir()).unlink()
    status, out, err = cli("results", folder, "--json")
    assert "1 of 6 tasks have no result yet" in err
    status, out, err = cli("sweep", config, "--jobs", 1, "--resume", "--json")
    content = json.loads(out)
    assert (status, content["run"], content["found"]) == (0, 1, 5)
    assert [p["n_replications"] for p in content["points"]] == [2, 2, 2]
    status, out, _ = cli("sweep", folder / "config.yaml", "--jobs", 1, "--resume", "--out", folder)
    assert status == 0


def test_results_of_a_query(cli, config, tmp_path):
    pytest.importorskip("duckdb")
    cli("sweep", config, "--jobs", 1, "--out", "o")
    sql = "select label, count(*) as n from results group by label order by label"
    status, out, _ = cli("results", "o", "--sql", sql, "--json")
    assert json.loads(out) == {
        "columns": ["label", "n"],
        "rows": [["continuous", 2], ["static", 4]],
    }
    status, out, err = cli("results", "o", "--sql", "selct")
    assert (status, out) == (2, "")
    assert err.startswith("bucketsim: error: --sql: Parser Error")


def failing(monkeypatch, fails):
    """Make the tasks fail whose experiment `fails`."""
    whole = sweep_task.replicate

    def replicate(experiment, choice, index):
        if fails(experiment):
            raise Deadlock("nobody moves")
        return whole(experiment, choice, index)

    monkeypatch.setattr(sweep_task, "replicate", replicate)


def test_failures_are_told_and_exit_with_1(cli, config, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, lambda experiment: True)
        status, out, err = cli("sweep", config, "--jobs", 1, "--out", "o")
    assert status == 1
    assert "failed: " in err
    assert "all 6 tasks failed; see o/failed.json" in err
    with monkeypatch.context() as patch:
        failing(patch, lambda experiment: experiment.policies[0].label == "static")
        status, out, err = cli("sweep", config, "--jobs", 1, "--out", "p")
    assert status == 1
    assert "nobody moves" in err
    assert "4 of 6 tasks failed (listed in p/failed.json); --resume runs them again" in err
    assert "continuous" in out


def test_what_only_a_task_finds_wrong_with_the_input_exits_with_2(cli, config, tmp_path):
    (tmp_path / "t.csv").write_text("arrived_at_s,prompt_tokens,output_tokens\n0,5,x\n")
    sources = "sweep={workload.source: [alpaca, t.csv]}"
    status, out, err = cli("sweep", config, sources, "--jobs", 1, "--out", "o")
    assert status == 2
    assert "bucketsim: error: 2 of 4 tasks failed" in err
    assert "t.csv: row 2" in err
    assert "alpaca" in out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("sweep={power.cap_w: [300, 50]}",),
            "study.yaml: sweep: power.cap_w: 50 W is no cap for a100-40gb: idle it draws 63 W; "
            "valid: above that, up to 400 W (at the point continuous, power.cap_w 50)",
        ),
        (
            ("speculative={method: ngram, num_speculative_tokens: 2}",),
            "study.yaml: speculative: policy 'static' runs static batches, which draft no tokens; "
            "valid: policies that batch continuously (at the point static, "
            "policy.max_batch_size 2)",
        ),
        (
            ("sweep={cluster.pools: [null, [{instances: 9}]]}",),
            "study.yaml: sweep: cluster.pools: 9 GPUs wanted, cluster.count is 2 (at the point "
            "continuous, cluster.pools [{'instances': 9}])",
        ),
        (
            ("sweep={slo.by.chat.ttft_ms: [100]}",),
            "study.yaml: sweep: slo.by.chat: the workload has no such class; valid: alpaca (at the "
            "point continuous, slo.by.chat.ttft_ms 100)",
        ),
        (
            ("sweep={workload.source: [alpaca, alpacca]}",),
            "(at the point continuous, workload.source 'alpacca')",
        ),
    ],
)
def test_a_point_that_cannot_run_is_named_before_anything_does(cli, config, overrides, said):
    status, out, err = cli("sweep", config, *overrides, "--jobs", 1, "--out", "o")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not Path("o").exists()


def test_notices_are_told_once_with_the_points_they_are_about(cli, config):
    cut = "sweep={workload.arrivals.rate: [1, 90], engine.max_model_len: [60, 4096]}"
    status, _, err = cli("sweep", config, cut, "--jobs", 1, "--out", "o")
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert status == 0
    assert len(notes) == 2
    assert "derived, not measured on this hardware (4 of 4 points)" in notes[0]
    assert notes[1].endswith("longer than max_model_len or than the memory holds (2 of 4 points)")
    status, out, again = cli("results", "o", "--json")
    assert again.splitlines() == notes
    assert [f"note: {note}" for note in json.loads(out)["notes"]] == notes
    assert int(notes[1].split()[1]) == sum(p["rejected"] * 2 for p in json.loads(out)["points"])


def test_a_sweep_section_is_for_sweeps(cli, config):
    status, _, err = cli("run", config)
    assert (status, "only `bucketsim sweep` and `tune` take it" in err) == (2, True)


@pytest.mark.slow
def test_interrupt_keeps_the_finished_shards(config, tmp_path):
    longer = ["workload.num_requests=400", "run.replications=100"]
    arguments = ["sweep", config, *longer, "--jobs", "2"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )
    shards = tmp_path / "study-sweep" / "shards"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(shards.glob("*.parquet"))) < 3:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        "bucketsim: error: interrupted; what is finished is in study-sweep, --resume goes on"
    )
    assert "Traceback" not in err
    kept = len(list(shards.glob("*.parquet")))
    assert 3 <= kept < 300
