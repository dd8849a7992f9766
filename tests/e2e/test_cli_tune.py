"""`bucketsim tune` as a user calls it."""

import json
import sys

import pytest
import yaml

from sim.cli import main

CONFIG = """
cluster: {gpu: a100-80gb, count: 1, model: opt-13b, profile: distserve}
policy: {name: continuous, max_num_seqs: 4}
workload:
  source: alpaca
  num_requests: 20
  max_model_len: 2048
  arrivals: {process: poisson, rate: 2}
slo: {ttft_ms: 200, tpot_ms: 60}
engine: {max_model_len: 150}
run: {replications: 2}
sweep:
  policy.max_num_seqs: {low: 2, high: 256, log: true, integer: true}
  policy.max_num_batched_tokens: [16, 2048]
  method: lhs
  n: 4
"""


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_a_search_its_files_and_going_on(cli, config, tmp_path):
    out = tmp_path / "out"
    status, text, err = cli("tune", config, "--trials", 6, "--out", out)
    assert status == 0
    assert "0 (baseline)" in text
    assert "6 trials" in text
    assert "believe these" in text
    assert f"picture: {out}/tune.png" in err
    assert (out / "tune.png").read_bytes().startswith(b"\x89PNG")
    written = (out / "tune.json").read_bytes()
    content = json.loads(written)
    assert content["num_trials"] == len(content["trials"]) == 6
    assert content["candidates"][0]["trial"] == 0
    assert ("failed: 1 x" in err) is (content["num_failed"] > 0)
    (rejected,) = [note for note in content["notes"] if "requests were rejected" in note]
    assert f"({6 - content['num_failed']} of {6 - content['num_failed']} trials)" in rejected
    assert f"note: {rejected}" in err

    chosen = [c for c in content["candidates"] if c["chosen"]]
    assert [c["config"] for c in chosen] == [f"trial-{c['trial']}.yaml" for c in chosen]
    status, printed, _ = cli("run", out / chosen[-1]["config"], "--json")
    assert status == 0
    assert json.loads(printed)["offered_rate"] == pytest.approx(2, rel=0.5)
    params = yaml.safe_load((out / chosen[-1]["config"]).read_text())["policy"][0]
    for key, value in chosen[-1]["values"].items():
        assert params[key.removeprefix("policy.")] == value

    status, _, err = cli("tune", config, "--trials", 6, "--out", out)
    assert status == 2
    assert "go on with --resume" in err
    status, printed, _ = cli("tune", config, "--trials", 6, "--out", out, "--resume", "--json")
    assert status == 0
    assert printed.encode() == written == (out / "tune.json").read_bytes()


def test_where_results_go_by_default(cli, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("tune", config, "--trials", 2)[0] == 0
    assert (tmp_path / "config-tune" / "tune.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--trials", "1"), "--trials: 1; valid: 2 to"),
        (("--load", "0"), "--load: 0 of the baseline's capacity"),
        (("--attainment", "2"), "--attainment: 2; valid"),
        (("slo={}",), "no bound is set to judge by"),
        (("sweep.policy.max_num_sqs=[1, 2]",), "did you mean 'max_num_seqs'"),
        (("sweep={}",), "sweep: expected keys"),
        (("sweep={cluster.count: [1, 2]}",), "only keys of policy and engine"),
        (("policy.max_num_seqs=0",), "max_num_seqs"),
        (("cluster.model=gpt-0",), "gpt-0"),
    ],
)
def test_bad_input_is_one_line(cli, config, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = cli("tune", config, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_without_optuna(cli, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, out, err = cli("tune", config, "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert err == (
        "bucketsim: error: tune: optuna is not installed; pip install 'bucketsim[tune]'\n"
    )
