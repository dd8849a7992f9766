import itertools

import numpy as np
import pytest

from sim.core.simulation import simulate
from sim.study.build import build, settings
from sim.study.config import resolve
from sim.study.files import json_text
from sim.study.run import (
    SATURATION_REQUESTS,
    _saturated,
    compare,
    frame,
    requests_of,
    run,
    saturation_rate,
)
from sim.study.statistics.metrics import itl_runs, steady_series
from sim.study.statistics.precision import Precision
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


def simulated(chosen):
    """Return the record of a config's first policy."""
    setup, trace = build(chosen, chosen.policies[0]), requests_of(chosen, 0)
    return simulate(trace, setup.policy, setup.specs, settings(chosen, setup.policy, trace, 0))


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


def test_policies_are_ranked_on_the_same_requests():
    chosen = experiment(["static", "continuous"], run={"replications": 3})
    ranking = compare(chosen).rankings["mean_e2el_ms"]
    assert ranking["order"] == ["continuous", "static"]
    assert ranking["pairs"][0]["wins"] == 3


def test_every_policy_of_a_replication_loses_the_longest_warm_up():
    sections = {"workload": {"num_requests": 300}, "run": {"replications": 2, "warmup": "mser5"}}
    alone = [run(experiment(name, **sections)) for name in ("static", "continuous")]
    own = [[s["warmup_s"] for s in result.summaries] for result in alone]
    assert own[0] != own[1]
    both = experiment(["static", "continuous"], **sections)
    comparison = compare(both)
    for result in comparison.results:
        cuts = [s["warmup_s"] for s in result.summaries]
        assert cuts == [max(pair) for pair in zip(*own, strict=True)]
        for replication, cut in zip(result.replications, cuts, strict=True):
            arrived = (replication.record.requests["arrival_s"] >= cut).sum()
            counted = [c["arrived"] for c in replication.summary["classes"]["source"].values()]
            assert sum(counted) == arrived
    assert any(f"in the first {min(cuts):.4g} to" in note for note in comparison.results[0].notes)
    assert same(comparison.differences, compare(both, jobs=2).differences)


def test_warm_ups_that_do_not_end_are_said_to():
    result = run(
        experiment(
            "static",
            workload={"num_requests": 400, **arrivals("poisson", rate=20)},
            run={"replications": 2, "warmup": "mser5"},
        )
    )
    assert any("more than half of 2 of 2 replications" in note for note in result.notes)


def test_a_fixed_warm_up_and_mser5_exclude_each_other():
    with pytest.raises(BadInput, match=r"warmup: mser5 and warmup_s 3\.0 exclude each other"):
        experiment(run={"warmup": "mser5", "warmup_s": 3})


def test_replications_are_added_until_the_figures_are_precise():
    chosen = experiment(run={"replications": 2})
    precise = run(chosen, precision=Precision(0.02, ("mean_tpot_ms",)))
    n = precise.summary["n_replications"]
    low, mean = precise.summary["mean_tpot_ms_ci_low"], precise.summary["mean_tpot_ms"]
    assert 10 < n < 100
    assert mean - low <= 0.02 * mean
    assert precise.experiment.run.replications == n
    assert precise.experiment.origin("run.replications") == "--precision"
    assert same(precise.summary, run(precise.experiment).summary)
    parallel = run(chosen, jobs=2, precision=Precision(0.02, ("mean_tpot_ms",)))
    assert same(precise.summary, parallel.summary)


def test_policies_get_equally_many_replications_and_the_cap_is_told():
    chosen = experiment(["static", "continuous"])
    comparison = compare(chosen, precision=Precision(0.001, cap=12))
    assert [r.summary["n_replications"] for r in comparison.results] == [12, 12]
    for result in comparison.results:
        assert any("0.1 % not reached with 12 replications" in note for note in result.notes)


def test_an_unknown_figure_ends_the_run_at_once():
    seen = []
    with pytest.raises(BadInput, match="--of: unknown key 'ttft'"):
        run(
            experiment(),
            progress=lambda *done: seen.append(done),
            precision=Precision(0.1, ("ttft",)),
        )
    assert seen == [(1, 1)]


def test_one_long_run_has_intervals_from_batches():
    sections = {"workload": {"num_requests": 2000}, "slo": {"ttft_ms": 200}}
    one = run(experiment(run={"replications": 1}, **sections)).summary
    keys = {"mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "slo_attainment", "slo_attainment_ttft"}
    keys |= {"steady_request_throughput", "steady_output_throughput", "request_goodput"}
    assert set(one["batch_means"]) == keys
    many = run(experiment(run={"replications": 10}, **sections)).summary
    assert "batch_means" not in many
    for key in keys:
        low, high = one[f"{key}_ci_low"], one[f"{key}_ci_high"]
        assert low < one[key] < high
        assert low < many[f"{key}_ci_high"]
        assert high > many[f"{key}_ci_low"]
        # One run is worth as much as ten that are a tenth as long, so sqrt(10) wider than these.
        assert 1 < (high - low) / (many[f"{key}_ci_high"] - many[f"{key}_ci_low"]) < 10
    assert np.isnan(one["p99_ttft_ms_ci_low"])


@pytest.mark.parametrize("sections", [{"warmup_s": 10.0}, {"stop": "horizon", "horizon_s": 20.0}])
def test_batches_are_of_the_values_that_the_figures_are_means_of(sections):
    chosen = experiment(
        slo={"ttft_ms": 60},
        run=sections,
        workload={"num_requests": 800, **arrivals("poisson", rate=20)},
    )
    result = run(chosen)
    cut_s = chosen.run.warmup_s
    for replication in result.replications:
        series = steady_series(replication.record, frame(chosen, result.setup, cut_s))
        assert len(series) == 8 or "stop" in sections  # too few completions to count in slices
        for key, values in series.items():
            assert values.mean() == pytest.approx(replication.summary[key])


def test_correlated_batches_are_told():
    over = experiment(
        workload={"num_requests": 1500, **arrivals("poisson", rate=20)}, run={"replications": 1}
    )
    notes = run(over).notes
    assert any("batch means of mean_ttft_ms" in note and "correlated" in note for note in notes)


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
    record = simulated(chosen)
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


def test_saturation_rate_of_a_policy_that_prefers_some_requests():
    # With all requests there from the start it would serve the short ones first, at twice the rate.
    rate = saturation_rate(experiment("uellm"))
    over = {"num_requests": 1500, **arrivals("poisson", rate=1.3 * rate)}
    record = simulated(experiment("uellm", workload=over))
    assert 1500 / record.end_s == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize(("backlog", "within"), [(512, 1e-9), (16, 1e-3)])
@pytest.mark.parametrize(("policy", "gpus"), [("continuous", 1), ("distserve", 2)])
def test_saturation_rate_is_that_of_any_backlog_where_first_come_is_first_served(
    policy, gpus, backlog, within, monkeypatch
):
    monkeypatch.setattr("sim.study.run.SATURATION_BACKLOG", backlog)  # 16 leave none waiting
    chosen = experiment(policy, cluster={"count": gpus})
    everything = _saturated(chosen, SATURATION_REQUESTS)[-1]
    assert saturation_rate(chosen) == pytest.approx(everything, rel=within)


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


@pytest.mark.parametrize(("rate", "said"), [
    (1e4, "load above all bands and got the highest's table"),
    (1.0, "load below all bands and got the lowest's table"),
])  # fmt: skip
def test_a_table_for_another_rate_is_told(rate, said):
    """The default service law: 3,000 requests a second at most."""
    smdp = {"name": "smdp", "service": {}}
    workload = {"source": "fixed", "input_len": 5, "output_len": 1, "num_requests": 9}
    result = run(experiment(policy=smdp, workload=workload | arrivals("poisson", rate=rate)))
    assert any(said in note for note in result.notes)


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
