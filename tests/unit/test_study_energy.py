"""Energy of a run: by hand, and through the config."""

import numpy as np
import pytest
from test_study_metrics import record, step, steps

from sim.core.records import DECODE, MIXED, Outage
from sim.costs.power import power_of
from sim.report.sweeps import point_columns
from sim.report.tables import comparison_table, result_table
from sim.study.build import build
from sim.study.config import resolve
from sim.study.output import comparison_of, summary_of
from sim.study.run import compare, run
from sim.study.statistics import energy
from sim.study.statistics.energy import ClusterPower, InstancePower
from sim.study.statistics.metrics import Frame, summarise
from sim.types import BadInput

H100 = power_of("h100")
DECODE_1_W = 300 + 300 / (1 + np.exp(4.2))


def instance(gpus=1, busy=1, power=H100):
    return InstancePower(power, gpus, busy, 1e3, 1e3, 1.0, 0.0, 0.0, 100.0, 1.0)


def cluster(model="phase", *, instances=None, host_w=0.0, **factors):
    return ClusterPower(model, tuple(instances or [instance()]), host_w, 1275.0, **factors)


def of(record, cluster, **frame):
    from sim.study.config import SloConfig

    return summarise(record, Frame(slo=SloConfig(), power=cluster, **frame))


def test_a_run_without_power_data_has_no_energy():
    assert not any("energy" in key or "power" in key for key in of(record(), None))


def test_phases_by_hand():
    # Prompts 2.5 s, decodes 3 s of batch 1, 2, 1; the run lasts 8 s.
    found = of(record(), cluster())
    assert found["gpu_energy_prefill_j"] == pytest.approx(2.5 * 700)
    assert found["gpu_energy_decode_j"] == pytest.approx(3 * 380)
    assert found["gpu_energy_mixed_j"] == 0
    assert found["gpu_energy_idle_j"] == pytest.approx(2.5 * 75)
    total = 2.5 * 700 + 3 * 380 + 2.5 * 75
    assert found["gpu_energy_j"] == pytest.approx(total)
    assert found["gpu_power_w"] == pytest.approx(total / 8)
    assert found["gpu_energy_j_per_request"] == pytest.approx(total / 3)
    assert found["gpu_energy_j_per_output_token"] == pytest.approx(total / 7)
    assert found["gpu_energy_j_per_token"] == pytest.approx(total / 67)


def test_decode_power_follows_the_batch():
    found = of(record(), cluster("logistic"))
    two = 300 + 300 / (1 + np.exp(4.2 - 1))
    assert found["gpu_energy_decode_j"] == pytest.approx(2 * DECODE_1_W + two)


def test_a_mixed_step_is_weighted_by_its_padded_chunk():
    log = steps(step(first_s=2, n_steps=1, padded_tokens=256, prefill_tokens=100,
                     prefill_requests=1, decode_requests=1, emitting=1, kind=MIXED))  # fmt: skip
    found = of(record(steps=log), cluster("logistic"))
    assert found["gpu_energy_mixed_j"] == pytest.approx(2 * (700 + DECODE_1_W) / 2)


def test_hosts_ratings_and_factors():
    factors = {"carbon_g_per_kwh": 400.0, "price_per_kwh": 0.2}
    found = of(record(), cluster(host_w=275.0, **factors))
    node_j = found["gpu_energy_j"] + 275 * 8
    assert found["node_energy_j"] == pytest.approx(node_j)
    assert found["node_energy_kwh"] == pytest.approx(node_j / 3.6e6)
    assert found["node_power_w"] == pytest.approx(node_j / 8)
    assert found["node_energy_j_per_request"] == pytest.approx(node_j / 3)
    assert found["carbon_g"] == pytest.approx(node_j / 3.6e6 * 400)
    assert found["energy_cost"] == pytest.approx(node_j / 3.6e6 * 0.2)
    assert found["provisioned_power_w"] == 1275
    assert "carbon_g" not in of(record(), cluster())


def test_an_idle_cluster_draws_idle_power():
    nothing = record(steps=steps(), instances=record().instances * 3)
    instances = [instance(gpus=2), instance(), instance()]
    found = of(nothing, cluster(instances=instances, host_w=10.0), horizon_s=100.0)
    assert found["gpu_energy_j"] == found["gpu_energy_idle_j"] == 4 * 75 * 100
    assert found["gpu_power_w_per_gpu"] == 75
    assert found["node_power_w"] == 310


def test_stages_that_take_turns_leave_the_others_idle():
    found = of(record(), cluster(instances=[instance(gpus=4, busy=2)]))
    assert found["gpu_energy_decode_j"] == pytest.approx(2 * 3 * 380)
    assert found["gpu_energy_idle_j"] == pytest.approx(75 * (4 * 8 - 2 * 5.5))


def test_an_instance_that_is_down_draws_nothing():
    outages = [Outage(0, 5.0, 5.75, 0.0, 0), Outage(0, 7.5, 20.0, 0.0, 0)]
    found = of(record(outages=outages), cluster())
    assert found["gpu_energy_idle_j"] == pytest.approx((2.5 - 0.75 - 0.5) * 75)


def test_work_of_each_step_decides_in_the_roofline():
    log = steps(step(first_s=1, increment_s=0.5, n_steps=3, kv_tokens=20, decode_requests=2,
                     emitting=2, kind=DECODE))  # fmt: skip
    # Bytes 100 + cached + 2 written, 2 FLOPs, peaks 1,000 a second.
    expected = 0.0
    for k, seconds in enumerate((1.0, 1.5, 2.0)):
        use, mfu = (122 + 2 * k) / seconds / 1e3, 2 / seconds / 1e3
        expected += seconds * (75 + 225 * use + 638 * (mfu / 0.45) ** 0.7)
    found = of(record(steps=log), cluster("roofline"))
    assert found["gpu_energy_decode_j"] == pytest.approx(expected)


def test_pieces_do_not_matter(monkeypatch):
    whole = of(record(), cluster("roofline"))["gpu_energy_j"]
    monkeypatch.setattr(energy, "PIECE_STEPS", 2)
    assert of(record(), cluster("roofline"))["gpu_energy_j"] == pytest.approx(whole)


# -- through the config ---------------------------------------------------------------------------


def experiment(*overrides, policy="continuous", gpu="h100", **cluster):
    config = {
        "cluster": {"gpu": gpu, "count": 2, "model": "llama-3.1-8b", **cluster},
        "policy": policy,
        "workload": {
            "source": "sharegpt",
            "num_requests": 40,
            "max_model_len": 2048,
            "arrivals": {"process": "poisson", "rate": 8},
        },
        "run": {"replications": 2},
    }
    return resolve(config, "test", overrides)


def test_energy_is_in_every_summary_with_intervals():
    result = run(experiment())
    summary = summary_of(result)
    parts = [summary[f"gpu_energy_{p}_j"] for p in ("idle", "prefill", "decode", "mixed")]
    assert sum(parts) == pytest.approx(summary["gpu_energy_j"])
    assert summary["gpu_energy_j_ci_low"] < summary["gpu_energy_j"]
    assert summary["provisioned_power_w"] == 2 * 10200 / 8
    assert 2 * 75 < summary["gpu_power_w"] < 2 * 700
    assert "power" not in summary
    assert not any("energy" in note for note in result.notes)


def test_what_was_asked_for_is_in_the_summary_and_in_the_notes():
    result = run(experiment("power.model=roofline", "power.carbon_g_per_kwh=300"))
    summary = summary_of(result)
    assert summary["power"]["model"] == "roofline"
    assert summary["carbon_g"] == pytest.approx(300 * summary["node_energy_kwh"])
    assert any("model roofline: absolute power is known to +-30 %" in n for n in result.notes)


def test_models_count_the_same_schedule():
    found = {m: run(experiment(f"power.model={m}")).summary for m in ("phase", "logistic", "mfu")}
    assert len({s["mean_ttft_ms"] for s in found.values()}) == 1
    assert len({s["gpu_energy_j"] for s in found.values()}) == 3


def test_fused_or_not_the_energy_is_the_same():
    for model in ("logistic", "roofline"):
        asked = f"power.model={model}"
        fused, single = (
            run(experiment(asked, f"engine.fuse_steps={fuse}")).summary
            for fuse in ("true", "false")
        )
        for key in ("gpu_energy_j", "gpu_energy_decode_j", "gpu_energy_idle_j"):
            assert fused[key] == pytest.approx(single[key], rel=1e-9)


def test_a_cap_slows_prompts_and_saves_power():
    plain, capped = (run(experiment(*o)).summary for o in ((), ("power.cap_w=350",)))
    assert capped["mean_prefill_ms"] > 1.3 * plain["mean_prefill_ms"]
    assert capped["gpu_power_w"] < 2 * 350
    assert capped["gpu_power_w"] < plain["gpu_power_w"]
    assert capped["provisioned_power_w"] == pytest.approx(2 * 7140 / 8)
    above = run(experiment("power.cap_w=900")).summary
    assert above["mean_ttft_ms"] == plain["mean_ttft_ms"]


def test_kernels_are_slower_under_a_cap_as_well():
    floored = ("engine.min_step_ms=20", "run.replications=1")
    plain, capped = (
        run(experiment(*floored, *cap, policy="distserve")).summary
        for cap in ((), ("power.cap_w=350",))
    )
    assert capped["gpu_kernel_frac"] > plain["gpu_kernel_frac"]


def test_a_cap_on_fused_spans_is_exact():
    policy = {"name": "continuous", "scheduler": "v0"}
    records = [
        run(experiment("power.cap_w=350", f"engine.fuse_steps={fuse}", policy=policy))
        for fuse in ("true", "false")
    ]
    one, two = (r.replications[0].record.requests for r in records)
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_array_equal(one[name], two[name])


def test_a_pipeline_counts_every_gpu_once():
    pools = [{"role": "mixed", "instances": 1, "pp": 2}]
    lanes = build(e := experiment(pools=pools), e.policies[0]).power
    assert [(i.gpus, i.busy_gpus) for i in lanes.instances] == [(1, 1), (1, 1)]
    e = experiment("engine.pipeline=sequential", pools=pools)
    turns = build(e, e.policies[0]).power
    assert [(i.gpus, i.busy_gpus) for i in turns.instances] == [(2, 1)]
    assert turns.rating_w == lanes.rating_w == 2 * 10200 / 8


def test_a_gpu_without_data_gets_a_notice_or_an_error():
    asked = experiment("power.model=phase", gpu="h200")
    with pytest.raises(BadInput) as caught:
        run(asked)
    assert str(caught.value) == (
        "command line: power: no power data for GPU 'h200'; there are for: a100-80gb, a100-40gb, "
        "h100"
    )
    result = run(experiment(gpu="h200"))
    assert sum("no power data for h200" in note for note in result.notes) == 1
    assert not any("energy" in key for key in result.summary)
    as_h100 = run(experiment("power.gpu=h100", gpu="h200"))
    assert as_h100.summary["gpu_energy_j"] > 0
    assert "power of h200 is that of h100: power.gpu says so" in as_h100.notes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("power.cap_w=70", "power.cap_w: 70 W is no cap for h100: idle it draws 75 W"),
        ("power.gpu=p4", "power.gpu: no power data for GPU 'p4'"),
        ("power.model=watts", "power.model"),
        ("power.host_w=1", "unknown key 'power.host_w'; did you mean 'host_w_per_gpu'?"),
        ("power.price_per_kwh=-1", "power.price_per_kwh"),
    ],
)
def test_bad_power(override, message):
    with pytest.raises(BadInput, match=message) as caught:
        run(experiment(override))
    assert "\n" not in str(caught.value)


def test_a_cap_below_decode_is_noted():
    notes = run(experiment("power.cap_w=250")).notes
    assert any("power.cap_w 250 is below the 300 W that decode draws" in note for note in notes)


def test_derived_data_say_so():
    asked = experiment("power.model=phase", gpu="a100-40gb", model="llama-2-13b")
    assert any("power of a100-40gb: derived" in note for note in run(asked).notes)


def text_of(drawn):
    from rich.console import Console

    console = Console(width=240)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


def test_tables_show_energy():
    shown = text_of(result_table(summary_of(run(experiment("power.price_per_kwh=0.3")))))
    assert "GPU energy per request" in shown
    assert "price" in shown


def test_wide_comparisons_show_it_if_asked():
    policies = ["continuous", "sarathi", "orca", "static"]
    for overrides, expected in (((), False), (("power.model=phase",), True)):
        found = compare(experiment(*overrides, "run.replications=1", policy=policies))
        assert ("J/tok" in text_of(comparison_table(comparison_of(found)))) == expected


def test_sweeps_of_power_show_it():
    summary = {"label": "a", "saturation": "stable", "n_replications": 2}
    summary |= {"gpu_energy_j_per_output_token": 0.25}
    for key, expected in (("power.cap_w", True), ("run.seed", False)):
        point = summary | {"values": {key: 400}}
        assert ("J/token" in point_columns([key], [point])) == expected


def test_the_section_is_in_the_resolved_config():
    assert "power" not in experiment().resolved()
    again = resolve(experiment("power.cap_w=400").resolved(), "again")
    assert again.power.cap_w == 400
    assert again.power.model == "logistic"
