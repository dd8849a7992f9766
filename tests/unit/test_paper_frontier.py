"""The frontier: which policies are lines, capacities and ratios, and what is written."""

import json
import math
from copy import deepcopy

import pytest
from small_studies import FRONTIER, base, write

import policies
from sim.cli import main
from sim.report import paper_frontier
from sim.report.paper_frontier import is_close, sentences, write_frontier
from sim.study.capacity.attainment import ALL, at_rate, attained
from sim.study.config import resolve
from sim.study.paper.frontier import plan_frontier, run_frontier
from sim.study.paper.recipes import read_paper_set
from sim.study.paper.studies import PADDED, PADDING_FREE
from sim.study.paper.units import FOLDER, Progress
from sim.study.statistics.stats import student_t
from sim.types import BadInput

FEW = ["bucketserve", "continuous", "static"]


def planned(folder, change=None, **options):
    study = deepcopy(FRONTIER)
    if change is not None:
        change(study)
    write(folder, frontier=study)
    return plan_frontier(base(folder), folder / "frontier.yaml", **options)


def run(frontier, folder):
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    progress = Progress(frontier.cost)
    return run_frontier(frontier, folder, 1, progress), progress


@pytest.fixture(scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "names", lambda: [*FEW, "uellm"])
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory, few):
    folder = tmp_path_factory.mktemp("frontier")
    result, progress = run(planned(folder), folder)
    return folder, result, progress


def point(result, policy, scale, engine=PADDED):
    return next(
        p
        for p in result.points
        if (p.line.policy, p.scale, p.line.engine) == (policy, scale, engine)
    )


# -- lines --------------------------------------------------------------------------------------


def test_every_registered_policy_is_a_line_or_left_out():
    found = plan_frontier(read_paper_set())
    assert {x.policy for x in found.lines} | set(found.left_out) == set(policies.names())
    assert {x.engine for x in found.lines} == {PADDED, PADDING_FREE}
    assert {x.gpus for x in found.lines} == {4}


def test_a_policy_that_cannot_run_is_left_out_with_the_reason(tmp_path):
    def change(study):
        study["layouts"]["mixed"] = [{"role": "mixed", "instances": 9, "tp": 1}]
        study["lines"] = []

    found = planned(tmp_path, change)
    assert "continuous" in found.left_out
    assert "9" in found.left_out["continuous"]
    assert "continuous" not in {x.policy for x in found.lines}
    assert "bucketserve" in {x.policy for x in found.lines}


def test_pools_are_those_of_the_roles(tmp_path):
    pools = {
        x.policy: [p["role"] for p in json.loads(x.configs[2])["cluster"]["pools"]]
        for x in planned(tmp_path).lines
    }
    assert pools["continuous"] == pools["static"] == ["mixed"]
    assert pools["distserve"] == pools["bucketserve"] == ["prefill", "decode"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(scale=[1]), "unknown key 'scale'; did you mean 'scales'?"),
        (lambda s: s.update(baseline="bucketserv"), "did you mean 'bucketserve'?"),
        (lambda s: s.update(attainments=[80]), "attainments: 80; valid: above 0, up to 1"),
        (lambda s: s.update(scales=[0]), "scales: 0; valid: above 0"),
        (lambda s: s["left_out"].update(nobody="?"), "unknown key 'nobody'"),
        (lambda s: s["lines"].append({"policy": "static", "label": "vLLM-like"}), "stands twice"),
        (lambda s: s["lines"][0].update(set={"policy.seqs": 1}), "line 'vLLM-like': unknown key"),
    ],
)
def test_a_wrong_yaml_is_one_line_with_the_valid_choices(tmp_path, change, message):
    with pytest.raises(BadInput) as error:
        planned(tmp_path, change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_who_never_pads_is_run_once(tmp_path):
    configs = {}
    for line in planned(tmp_path).lines:
        configs.setdefault(line.policy, set()).update(line.configs.values())
    assert len(configs["continuous"]) == len(FRONTIER["scales"])
    assert len(configs["bucketserve"]) == 2 * len(FRONTIER["scales"])


@pytest.mark.parametrize("policy", plan_frontier(read_paper_set()).file.never_pad)
def test_who_is_said_never_to_pad_does_not(policy):
    """Its records are the same on an engine that pads where a policy says so."""
    text = next(x for x in plan_frontier(read_paper_set()).lines if x.policy == policy).configs[16]
    config = json.loads(text)
    config["workload"]["num_requests"] = 60
    found = []
    for padding in ("policy", "none"):
        config["engine"]["padding"] = padding
        experiment = resolve(config, "a test")
        found.append(attained(at_rate(experiment, 20.0), experiment.policies[0], 0))
    assert found[0] == found[1]


# -- capacities ---------------------------------------------------------------------------------


def test_a_capacity_is_where_every_class_crosses(done):
    folder, result, _ = done
    found = point(result, "bucketserve", 8)
    config = json.loads(found.line.configs[8])
    experiment = resolve(config, "a test")
    units = [json.loads(path.read_text()) for path in (folder / FOLDER).iterdir()]
    mine = {unit["replication"]: unit["found"] for unit in units if unit["config"] == config}
    assert sorted(mine) == [0, 1]
    for i, of in mine.items():
        low, high = of["low_per_s"], of["high_per_s"]
        assert found.values[i] == (low + high) / 2
        assert high - low <= FRONTIER["search"]["width"] * high
        below, above = (
            attained(at_rate(experiment, rate), experiment.policies[0], i) for rate in (low, high)
        )
        assert set(below.met) == {ALL, "alpaca", "longbench"}
        assert min(below.met.values()) >= 0.8 > min(above.met.values())


def test_ratios_are_paired(done):
    _, result, _ = done
    mine, ours = point(result, "continuous", 8), point(result, "bucketserve", 8)
    pairs = zip(mine.values, ours.values, strict=True)
    assert mine.ratio == student_t([a / b for a, b in pairs])
    assert ours.ratio.mean == 1
    assert is_close((1, 2, 3), (1.1, 1.9, 3))
    assert not is_close((1, 2, 3), (0.9, 1.9, 2.9))
    assert not is_close((1,), (1,))


def test_who_misses_the_target_at_every_rate_says_why(done):
    _, result, _ = done
    found = point(result, "continuous", 2)  # a long prompt takes a single GPU more than 0.5 s
    assert found.values == (0, 0)
    assert "longbench" in found.why or "ttft_ms" in found.why
    assert math.isnan(point(result, "continuous", 2).ratio.low) or found.ratio.mean == 0
    said = sentences(result)
    assert any("No rate reaches the target" in text and "vLLM-like" in text for text in said)


# -- files --------------------------------------------------------------------------------------


def test_a_second_run_searches_nothing_and_writes_the_same(done, tmp_path, monkeypatch):
    folder, result, first = done
    names = [path.name for path in write_frontier(result, folder)]
    assert names == [f"frontier.{e}" for e in ("csv", "parquet", "md", "pdf", "png")]
    again, second = run(planned(folder), folder)
    assert first.ran == (2 + 1 + 2) * 2 * 2
    assert (second.ran, second.found) == (0, first.ran)
    monkeypatch.setattr(paper_frontier, "_draw", lambda *_: [])
    for path in write_frontier(again, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_the_command(tmp_path, capsys, monkeypatch, few):
    monkeypatch.setattr(paper_frontier, "_draw", lambda *_: [])
    write(tmp_path, frontier=FRONTIER)
    options = ["paper", "frontier", "--seeds", "1", "--jobs", "1", "--recipes", str(tmp_path)]
    options += ["--study", str(tmp_path / "frontier.yaml"), "--out", str(tmp_path / "out")]
    assert main(options) == 0
    said = capsys.readouterr().err
    assert "policy uellm is left out: too slow for a test" in said
    assert "results in" in said
    assert "requests simulated" in said
    page = (tmp_path / "out" / "frontier.md").read_text()
    assert "One seed, no intervals" in page
    assert "Left out: uellm (too slow for a test)" in page
