"""`bucketsim capacity` as a user calls it."""

import json

import pytest

from sim.cli import main

CONFIG = """
cluster: {gpu: a100-80gb, count: 3, model: opt-13b, profile: distserve}
policy: distserve
workload:
  source: alpaca
  num_requests: 60
  max_model_len: 2048
  arrivals: {process: poisson, rate: 30}
slo: {ttft_ms: 60, tpot_ms: 40}
run: {replications: 2}
"""


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        status = main(["capacity", *[str(a) for a in arguments]])
        return status, *capsys.readouterr()

    return run


COARSE = ("--placement", "--width", "0.5")
"""A bisection of few runs; how exact one gets is judged by the tests of the search itself."""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr("sim.study.run.SATURATION_REQUESTS", 400)
    monkeypatch.setattr("sim.study.capacity.placement.AMPLE_INSTANCES", 32)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize("algorithm", ["high", "low"])
def test_a_placement_is_found_and_shown(cli, config, algorithm):
    status, out, err = cli(config, *COARSE, "--algorithm", algorithm)
    assert status == 0
    assert "req/s per GPU" in out
    assert "placement for 30 requests/s" in out
    assert "its attainment there" in out
    assert out.count("chosen") == (2 if algorithm == "high" else 1)
    assert "skipped" in err
    assert "cluster.count is 3" in err


def test_json_is_one_object_and_repeats(cli, config):
    arguments = (config, *COARSE, "--json", "--rate", 50, "--gpus-per-node", 2)
    status, out, _ = cli(*arguments)
    found = json.loads(out)
    assert status == 0
    assert (found["rate_per_s"], found["gpus_per_node"], found["attainment"]) == (50, 2, 0.9)
    assert found["num_skipped"] == len(found["skipped"]) > 0
    assert all(s["reason"] for s in found["skipped"])
    chosen = found["placement"]
    prefill = next(
        c
        for c in found["candidates"]
        if c["phase"] == "prefill" and c["prefill"] == chosen["prefill"]
    )
    capacity = prefill["goodput_per_gpu_per_s"] * prefill["gpus"]
    assert (chosen["prefill_instances"] - 1) * capacity < 50
    assert chosen["prefill_instances"] * capacity >= 50
    assert set(found["attainment_at_rate"]) == {"ttft", "tpot", "total"}
    assert cli(*arguments)[1] == out


def test_targets_out_of_reach_fail_after_the_table(cli, config):
    status, out, err = cli(config, "slo.ttft_ms=1", "--placement", "--max-rate", 2, "--width", 1)
    assert status == 1
    assert "none" in out
    assert "placement for" not in out
    assert "no layout reaches an attainment of 0.9" in err.splitlines()[-1]


def test_the_placement_serves_the_rate_when_run(cli, config, capsys):
    chosen = json.loads(cli(config, *COARSE, "--algorithm", "low", "--json")[1])
    pools = ",".join(
        f"{{role: {role}, instances: {chosen['placement'][f'{role}_instances']}, "
        f"tp: {chosen['placement'][role]['tp']}, pp: {chosen['placement'][role]['pp']}}}"
        for role in ("prefill", "decode")
    )
    count = chosen["placement"]["gpus"]
    status = main(
        ["run", str(config), "--json", f"cluster.pools=[{pools}]", f"cluster.count={count}"]
    )
    summary = json.loads(capsys.readouterr().out)
    assert status == 0
    assert summary["slo_attainment"] == chosen["attainment_at_rate"]["total"]


TWO = ("--policies", "continuous,distserve", "slo.ttft_ms=200")


def test_capacity_by_bisection(cli, config, tmp_path):
    out = tmp_path / "out"
    status, text, err = cli(config, *TWO, "--out", out)
    assert status == 0
    assert "capacity" in text
    assert "against continuous" in text
    assert "n=2 replications" in text
    assert "picture" in err
    assert {p.name for p in out.iterdir()} == {
        *("capacity.json", "capacity.png"),
        *("continuous.yaml", "distserve.yaml"),
    }
    status, printed, _ = cli(config, *TWO, "--json")
    assert status == 0
    assert printed == (out / "capacity.json").read_text()


def test_the_fewest_gpus(cli, config, tmp_path):
    arguments = ("--rate", 20, "--price-per-gpu-hour", 2, "--gpus-per-node", 2, "--every-class")
    status, text, _ = cli(config, *TWO, *arguments, "--out", tmp_path / "out")
    assert status == 0
    assert "20 requests/s of opt-13b" in text
    assert text.count("fewest") == 2
    assert "GPU-hours a day" in text
    status, printed, _ = cli(config, *TWO, *arguments, "--json")
    assert printed == (tmp_path / "out" / "sizing.json").read_text()
    found = json.loads(printed)
    assert found["every_class"] is True
    assert found["policies"]["distserve"]["best"]["pools"][0]["role"] == "prefill"


@pytest.mark.parametrize("arguments", [(), ("--rate", "5")])
def test_a_bound_no_rate_can_meet_is_named(cli, config, arguments):
    status, text, err = cli(config, "slo.ttft_ms=1", "run.replications=1", *arguments)
    assert status == 1
    assert "none" in text
    said = err.splitlines()[-1]
    assert said.startswith("bucketsim: error: distserve: no ")
    assert "an attainment of 0.9" in said
    assert "slo.ttft_ms (1 ms) fails: 0.0% of the requests meet it" in said


def test_policies_without_a_capacity_are_told_beside_those_with_one(cli, config):
    waits = "{name: static, max_batch_size: 200, fill_timeout_s: 100000}"
    arguments = (f"policy=[continuous, {waits}]", "run.replications=1")
    status, text, err = cli(config, *arguments)
    assert status == 0
    assert "none" in text
    assert "note: static: no rate reaches an attainment of 0.9: at best 0" in err
    assert "continuous: no rate" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("slo={}",), "no bound is set to judge by; set slo.ttft_ms, slo.tpot_ms or slo.e2e_ms"),
        (("workload.arrivals={process: all-at-once}",), "has no one rate to vary"),
        (("--attainment", "0"), "--attainment: 0; valid"),
        (("--width", "2"), "--width: 2 of the rate; valid"),
        (("--max-rate", "2"), "--max-rate goes with --placement"),
        (("--price-per-gpu-hour", "2"), "--price-per-gpu-hour goes with --rate"),
        (("--rate", "3", "--price-per-gpu-hour", "-2"), "--price-per-gpu-hour: -2; valid"),
        (("--rate", "0"), "--rate: 0 requests/s"),
        (("--rate", "3", "--width", "0.1"), "--width does not go with --rate"),
        (("--placement", "--every-class"), "--every-class does not go with --placement"),
        (("--policies", "contnuous"), "contnuous"),
        (("slo.ttft_ms=null", "--placement"), "slo.ttft_ms is missing"),
        (("slo.tpot_ms=null", "--placement"), "slo.tpot_ms is missing"),
        (("policy=continuous", "--placement"), "'continuous' has no prefill and decode instances"),
        (("--placement", "--algorithm", "middle"), "'middle'"),
        (("--placement", "--attainment", "2"), "--attainment: 2; valid"),
        (("--placement", "--rate", "-1"), "--rate: -1"),
        (("cluster.model=gpt-0", "--placement"), "gpt-0"),
    ],
)
def test_bad_input_is_one_line(cli, config, arguments, said):
    status, out, err = cli(config, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
