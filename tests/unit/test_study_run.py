import itertools

import numpy as np
import pytest

from sim.core.simulation import simulate
from sim.study.build import build, settings
from sim.study.config import resolve
from sim.study.files import json_text
from sim.study.metrics import itl_runs
from sim.study.run import compare, requests_of, run, saturation_rate
from sim.types import BadInput


def experiment(policy="continuous", **sections):
    """Return 60 requests on one instance; sections update the config."""
    config = {
        "cluster": {"gpu": "a100-40gb", "count": 1, "model": "llama-2-13b"},
        "policy": policy,
        "workload": {
            "source": "sharegpt",
            "num_requests": 60,
            "max_model_len": 2048,
            "arrivals": {"process": "poisson", "rate": 2},
        },
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return resolve(config, "test")


def arrivals(process, **rest):
    return {"arrivals": {"process": process, **rest}}


def same(one, two):
    """Whether two nested mappings are equal, NaN and NaN included."""
    return json_text(one) == json_text(two)


def test_policies_and_rates_see_the_same_requests():
    slow = requests_of(experiment(), 3)
    fast = requests_of(experiment("static", workload=arrivals("poisson", rate=8)), 3)
    other = requests_of(experiment(), 4)
    assert (slow.input_len == fast.input_len).all()
    assert (slow.output_len == fast.output_len).all()
    np.testing.assert_allclose(slow.arrival_s, 4 * fast.arrival_s)
    assert (slow.input_len != other.input_len).any()


def test_replications_differ_and_repeat():
    chosen = experiment(run={"replications": 3})
    first, again = run(chosen), run(chosen)
    assert same(first.summary, again.summary)
    assert len({s["duration"] for s in first.summaries}) == 3
    assert first.summary["n_replications"] == 3


def test_the_seed_changes_everything():
    one, two = (run(experiment(run={"seed": seed})).summary["duration"] for seed in (1, 2))
    assert one != two


def test_parallel_is_serial():
    chosen = experiment(["static", "continuous"], run={"replications": 2})
    serial, parallel = compare(chosen), compare(chosen, jobs=2)
    assert same(serial.differences, parallel.differences)
    for one, two in zip(serial.results, parallel.results, strict=True):
        assert same(one.summary, two.summary)
        assert one.notes == two.notes
        for a, b in zip(one.replications, two.replications, strict=True):
            assert a.record.steps.tobytes() == b.record.steps.tobytes()


def test_differences_are_to_the_baseline():
    chosen = experiment(["static", "continuous"], run={"replications": 3})
    comparison = compare(chosen, baseline="continuous")
    assert list(comparison.differences) == ["static"]
    static, continuous = (
        [s["mean_ttft_ms"] for s in result.summaries] for result in comparison.results
    )
    difference = comparison.differences["static"]["mean_ttft_ms"]
    assert difference["diff"] == pytest.approx(np.mean(static) - np.mean(continuous))
    assert difference["n"] == 3


POLICIES = (
    {"name": "static"},
    {"name": "static", "release": "each", "finished_rows": "skip", "max_batch_size": 40},
    {"name": "continuous", "max_num_batched_tokens": 256, "max_num_seqs": 64},
    {"name": "continuous", "scheduler": "v0"},
    {"name": "continuous", "scheduler": "v0", "preemption_mode": "swap"},
)


@pytest.mark.parametrize(
    ("policy", "rate", "abort_after_s"), list(itertools.product(POLICIES, (0.5, 10), (None, 20.0)))
)
def test_there_is_a_gap_for_every_token_but_the_first(policy, rate, abort_after_s):
    chosen = experiment(
        policy,
        workload=arrivals("poisson", rate=rate),
        engine={"num_gpu_blocks": 200},
        slo={"abort_after_s": abort_after_s},
    )
    setup = build(chosen, chosen.policies[0])
    trace = requests_of(chosen, 0)
    how = settings(chosen, setup.policy, trace, 0)
    record = simulate(trace, setup.policy, setup.specs, how)
    emitted = record.requests["emitted_tokens"]
    assert itl_runs(record).total() == (emitted[emitted > 0] - 1).sum()


def test_saturation_rate_is_where_the_system_tops_out():
    chosen = experiment()
    rate = saturation_rate(chosen)
    over = run(
        experiment(workload={"num_requests": 1500, **arrivals("poisson", rate=1.5 * rate)})
    ).summary
    assert over["steady_request_throughput"] == pytest.approx(rate, rel=0.12)
    assert over["saturation"] == "overloaded"
    under = run(experiment(workload={"num_requests": 500, **arrivals("poisson", rate=rate / 2)}))
    assert under.summary["saturation"] == "stable"


def test_saturation_rate_of_a_trace_draws_from_it(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at_s,prompt_tokens,output_tokens\n0,100,10\n5,100,10\n")
    chosen = experiment(
        {"name": "static", "max_batch_size": 1},
        workload={"source": str(trace), "num_requests": None, "arrivals": None},
    )
    lone = experiment(
        {"name": "static", "max_batch_size": 1},
        workload={"source": "fixed", "input_len": 100, "output_len": 10, "num_requests": 1}
        | arrivals("all-at-once"),
    )
    assert saturation_rate(chosen) == pytest.approx(1 / run(lone).summary["duration"])


@pytest.mark.parametrize(
    "sections",
    [
        {"workload": arrivals("closed", concurrency=4, think_s=1)},
        {"workload": arrivals("all-at-once")},
        {"workload": arrivals("ramp", rate=1, end_rate=4, ramp_s=20)},
        {"run": {"stop": "horizon", "horizon_s": 15.0, "warmup_s": 5.0, "replications": 1}},
        {"slo": {"ttft_ms": 100, "abort_after_s": 5}},
        {"engine": {"fuse_steps": False}},
        {"cluster": {"count": 3}, "engine": {"router": "power-of-two"}},
    ],
)
def test_every_kind_of_run_accounts_for_its_requests(sections):
    result = run(experiment(**sections))
    s = result.summary
    arrived = len(result.replications[0].record.requests["arrival_s"])
    parts = [s[key] for key in ("completed", "rejected", "unfinished", "aborted")]
    assert sum(parts) == arrived
    assert arrived == 60 or "run" in sections


def test_fused_and_single_steps_give_the_same_figures():
    fused, single = (flat(run(experiment(engine={"fuse_steps": f})).summary) for f in (True, False))
    assert fused.pop(".saturation") == single.pop(".saturation")
    assert single == pytest.approx(fused, rel=1e-9, nan_ok=True)


def flat(figures, prefix=""):
    """Return nested figures under dotted keys."""
    found = {}
    for key, value in figures.items():
        name = f"{prefix}.{key}"
        found |= flat(value, name) if isinstance(value, dict) else {name: value}
    return found


def test_notices_tell_what_happened():
    result = run(
        experiment(
            workload={"source": "longbench", "num_requests": 40, "max_model_len": 2000},
            engine={"max_model_len": 1500},
            run={"replications": 2},
        )
    )
    said = "\n".join(result.notes)
    assert "prompts were cut to max_model_len (over 2 replications)" in said
    assert "requests were rejected: longer than max_model_len" in said
    assert "derived, not measured" in said


def test_equal_replications_are_said_to_be_equal():
    chosen = experiment(
        workload={"source": "fixed", "input_len": 50, "output_len": 5}
        | arrivals("constant", rate=1),
        run={"replications": 2},
    )
    assert any("same requests" in note for note in run(chosen).notes)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"run": {"warmup_s": 1e6}}, "run.warmup_s 1000000.0 leaves no request"),
        ({"run": {"stop": "horizon", "horizon_s": 1e-9}}, "no request arrives before 1e-09 s"),
        ({"slo": {"by": {"code": {"ttft_ms": 1}}}}, "slo.by.code: the workload has no such class"),
    ],
)
def test_windows_and_classes_without_requests_are_refused(sections, said):
    with pytest.raises(BadInput) as error:
        run(experiment(**sections))
    assert said in str(error.value)


def test_run_takes_one_policy_and_a_baseline_has_to_be_compared():
    with pytest.raises(BadInput, match="run takes one policy"):
        run(experiment(["static", "continuous"]))
    with pytest.raises(BadInput, match="--baseline: 'foo' is not compared; valid: static"):
        compare(experiment("static"), baseline="foo")
