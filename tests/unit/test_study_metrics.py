"""Every figure on a run of four requests, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from sim.core.records import DECODE, MIXED, PREFILL, STATIC_PREFILL, STEP_DTYPE, RunRecord
from sim.study.config import SloConfig
from sim.study.statistics.clock import Clock
from sim.study.statistics.metrics import Frame, itl_runs, span_seconds, summarise
from sim.types import to_fs

NAN = float("nan")


def step(**fields):
    return fields


def steps(*rows):
    """Return a step log; times in seconds, fields left out are 0."""
    array = np.zeros(len(rows), STEP_DTYPE)
    for at, row in enumerate(rows):
        for key, value in row.items():
            name = key.replace("_s", "_fs") if key in ("first_s", "increment_s", "lead_s") else key
            array[at][name] = to_fs(value) if name != key else value
    return array


def requests(**columns):
    n = len(columns["arrival_s"])
    defaults = {
        "request_id": range(n),
        "source": ["chat"] * n,
        "task": ["online"] * n,
        "priority": [0] * n,
        "status": ["finished"] * n,
        "preemptions": [0] * n,
        "cached_tokens": [0] * n,
        "prefill_start_s": columns["arrival_s"],
        "prefill_end_s": columns["first_token_s"],
    }
    return {name: np.array(values) for name, values in {**defaults, **columns}.items()}


def record(**changes):
    """Return a run of four requests on one instance of 10 blocks of 16 tokens.

    Request 0 prefills in [0, 1] and emits 4 tokens by 5; request 1 prefills in [2, 3], while 0
    stands still, and emits 2 tokens by 4; request 2 has one token; request 3 is rejected.
    """
    log = steps(
        step(start_s=0, first_s=1, n_steps=1, prefill_requests=1, prefill_tokens=20,
             padded_tokens=20, kind=PREFILL),
        step(start_s=1, first_s=1, n_steps=1, kv_tokens=20, decode_requests=1, emitting=1,
             kind=DECODE),
        step(start_s=2, first_s=1, n_steps=1, kv_tokens=21, prefill_requests=1, prefill_tokens=30,
             padded_tokens=40, kind=PREFILL),
        step(start_s=3, first_s=1, lead_s=1, n_steps=1, kv_tokens=51, decode_requests=2, emitting=2,
             veterans=1, kind=DECODE),
        step(start_s=4, first_s=1, n_steps=1, kv_tokens=22, decode_requests=1, emitting=1,
             kind=DECODE),
        step(start_s=6, first_s=0.5, n_steps=1, prefill_requests=1, prefill_tokens=10,
             padded_tokens=10, kind=PREFILL),
    )  # fmt: skip
    given = RunRecord(
        requests=requests(
            arrival_s=[0.0, 1.5, 6.0, 8.0],
            input_len=[20, 30, 10, 9999],
            output_len=[4, 2, 1, 1],
            emitted_tokens=[4, 2, 1, 0],
            first_token_s=[1.0, 3.0, 6.5, NAN],
            finish_s=[5.0, 4.0, 6.5, NAN],
            prefill_start_s=[0.0, 2.0, 6.0, NAN],
            status=["finished", "finished", "finished", "rejected"],
            preemptions=[1, 0, 0, 0],
        ),
        steps=log,
        gaps_s=np.array([]),
        swaps=[],
        end_s=8.0,
        counters={"oom_events": 2, "extrapolated_steps": 0},
        instances=[{"id": 0, "total_blocks": 10, "block_size": 16}],
        events={},
    )
    return replace(given, **changes)


def frame(**changes):
    return Frame(**({"slo": SloConfig()} | changes))


def test_whole_run_figures_follow_vllm():
    s = summarise(record(), frame())
    counts = [s[k] for k in ("completed", "failed", "rejected", "unfinished", "aborted")]
    assert counts == [3, 1, 1, 0, 0]
    assert (s["duration"], s["total_input_tokens"], s["total_output_tokens"]) == (8.0, 60, 7)
    assert s["request_throughput"] == 3 / 8
    assert s["output_throughput"] == 7 / 8
    assert s["total_token_throughput"] == 67 / 8
    assert (s["preemptions"], s["oom_events"]) == (1, 2)


def test_latencies():
    s = summarise(record(), frame())
    assert s["mean_ttft_ms"] == pytest.approx((1000 + 1500 + 500) / 3)
    assert s["median_ttft_ms"] == pytest.approx(1000)
    assert s["p90_ttft_ms"] == pytest.approx(np.percentile([1000, 1500, 500], 90))
    assert s["mean_e2el_ms"] == pytest.approx((5000 + 2500 + 500) / 3)
    # (5 - 1)/3 and (4 - 3)/1; the request of one token has none
    assert s["mean_tpot_ms"] == pytest.approx((4000 / 3 + 1000) / 2)
    assert s["std_tpot_ms"] == pytest.approx((4000 / 3 - 1000) / 2)


def test_latencies_by_the_engines_clock_and_with_api_time():
    columns = record().requests | {"queued_s": np.array([0.0, 2.0, 6.0, 8.0])}
    seen = summarise(record(requests=columns), frame(clock=Clock("engine")))
    assert seen["mean_ttft_ms"] == pytest.approx((1000 + 1000 + 500) / 3)
    assert seen["mean_e2el_ms"] == pytest.approx((5000 + 2000 + 500) / 3)
    plain = summarise(record(), frame())
    late = summarise(record(), frame(clock=Clock("client", 25.0)))
    for key in ("ttft", "e2el"):
        for figure in ("mean", "p99"):
            name = f"{figure}_{key}_ms"
            assert late[name] == pytest.approx(plain[name] + 25)
    assert late["mean_tpot_ms"] == pytest.approx(plain["mean_tpot_ms"])
    assert seen["mean_tpot_ms"] == pytest.approx(plain["mean_tpot_ms"])
    same = {k for k in plain if "ttft" not in k and "e2el" not in k and "tpot" not in k}
    assert {k for k in same if late[k] != plain[k] and plain[k] == plain[k]} <= {"classes"}


def test_the_engines_clock_has_no_api_time():
    assert Clock.of({"ttft_clock": "engine", "api_latency_ms": 9.0}) == Clock("engine", 0.0)
    assert Clock.of({"api_latency_ms": 9.0}) == Clock("client", 9.0)
    assert Clock.of({}) == Clock()


def test_gaps_between_tokens():
    # Request 0: 1, then 2 (it stood still), then 1; request 1: 1.
    gaps = itl_runs(record())
    assert gaps.total() == 4
    s = summarise(record(), frame())
    assert s["mean_itl_ms"] == pytest.approx(1250)
    assert s["median_itl_ms"] == pytest.approx(1000)
    assert s["p99_itl_ms"] == pytest.approx(2000)
    assert s["std_itl_ms"] == pytest.approx(np.std([1000, 2000, 1000, 1000]))


def test_gaps_of_spans_and_of_their_odd_members():
    # Steps of 1, 1.5 and 2 s for 3 requests; before, one stood still 4 s and one is elsewhere.
    log = steps(
        step(n_steps=3, first_s=1, increment_s=0.5, lead_s=4, emitting=3, veterans=1, odd=1,
             decode_requests=3, kind=MIXED),
        step(n_steps=1, first_s=9, lead_s=3, veterans=2, kind=PREFILL),
    )  # fmt: skip
    gaps = itl_runs(record(steps=log, gaps_s=np.array([7.0])))
    values = [1000, 5000, 7000] + 3 * [1500] + 3 * [2000]
    assert gaps.total() == 9
    assert gaps.mean() == pytest.approx(np.mean(values))
    assert [gaps.quantile(q) for q in (0.1, 0.5, 0.9, 1)] == pytest.approx([1000, 2000, 7000, 7000])
    assert span_seconds(log).tolist() == pytest.approx([4.5, 9])


def test_slo_counts_every_arrival():
    s = summarise(record(), frame(slo=SloConfig(ttft_ms=1000, tpot_ms=1100)))
    assert s["slo_attainment_ttft"] == 2 / 4  # requests 0 and 2
    assert s["slo_attainment_tpot"] == 2 / 4  # request 1, and 2 for want of a second token
    assert s["slo_attainment"] == 1 / 4  # request 2
    assert s["request_goodput"] == pytest.approx(1 / 8)
    assert s["offered_rate"] == 4 / 8


def test_slo_scale_and_e2e_bound():
    tight = frame(slo=SloConfig(e2e_ms=250, scale=10))
    assert summarise(record(), tight)["slo_attainment"] == 2 / 4


def test_slo_by_class():
    sources = np.array(["chat", "code", "chat", "chat"])
    changed = record()
    changed.requests["source"] = sources
    slo = SloConfig(ttft_ms=400, by={"code": {"ttft_ms": 2000}})
    assert summarise(changed, frame(slo=slo))["slo_attainment"] == 1 / 4
    assert summarise(changed, frame(slo=slo))["slo_attainment_ttft"] == 1 / 4
    only = SloConfig(by={"code": {"ttft_ms": 1}})
    assert summarise(changed, frame(slo=only))["slo_attainment"] == 2 / 4


def test_without_bounds_there_is_no_attainment():
    s = summarise(record(), frame())
    assert np.isnan([s["slo_attainment"], s["request_goodput"]]).all()


def test_window_starts_after_the_warm_up():
    s = summarise(record(), frame(warmup_s=1.5, slo=SloConfig(ttft_ms=1000)))
    assert s["offered_rate"] == pytest.approx(3 / 6.5)
    assert s["slo_attainment"] == pytest.approx(1 / 3)
    assert s["mean_ttft_ms"] == pytest.approx(1000)
    assert s["steady_request_throughput"] == pytest.approx(3 / 6.5)
    assert s["request_throughput"] == 3 / 8


def test_horizon_is_the_end():
    s = summarise(record(), frame(horizon_s=10.0))
    assert (s["duration"], s["offered_rate"]) == (10.0, 0.4)


def test_busy_time_and_padding():
    s = summarise(record(), frame())
    assert s["gpu_busy_frac"] == pytest.approx(5.5 / 8)
    assert s["gpu_busy_frac_prefill"] == pytest.approx(2.5 / 8)
    assert s["gpu_busy_frac_decode"] == pytest.approx(3 / 8)
    assert s["padding_waste"] == pytest.approx(1 - 60 / 70)


def test_kv_usage_is_weighted_by_time():
    s = summarise(record(), frame())
    # tokens held in each step, cached before it or written by it, of 160
    held = 20 * 1 + 21 * 1 + 51 * 1 + 53 * 1 + 23 * 1 + 10 * 0.5
    assert s["kv_usage_mean"] == pytest.approx(held / 8 / 160)
    assert s["kv_usage_p99"] == pytest.approx(53 / 160)


def test_static_prefill_holds_its_padding():
    log = steps(
        step(n_steps=1, first_s=8, prefill_tokens=30, padded_tokens=40, kind=STATIC_PREFILL)
    )
    assert summarise(record(steps=log), frame())["kv_usage_mean"] == pytest.approx(40 / 160)


def test_mfu_counts_each_served_token_once():
    s = summarise(
        record(),
        frame(peak_flops_per_s=1000.0, flops_per_token=3.0, attention_flops_per_pair=2.0),
    )
    tokens = np.array([23, 31, 10])
    flops = 3 * tokens.sum() + 2 * (tokens * (tokens + 1) / 2).sum()
    assert s["mfu"] == pytest.approx(flops / 8000)
    assert np.isnan(summarise(record(), frame())["mfu"])


def test_per_gpu():
    s = summarise(record(), frame(gpus=2, slo=SloConfig(ttft_ms=1000)))
    assert s["output_throughput_per_gpu"] == s["output_throughput"] / 2
    assert s["request_goodput_per_gpu"] == s["request_goodput"] / 2


def test_all_at_once_ends_with_the_run():
    changed = record()
    changed.requests["arrival_s"] = np.zeros(4)
    assert summarise(changed, frame())["offered_rate"] == pytest.approx(4 / 6.5)


def test_keys_are_those_of_the_contract():
    latencies = [
        f"{stat}_{m}_ms"
        for m in ("ttft", "tpot", "itl", "e2el")
        for stat in ("mean", "median", "std", "p90", "p95", "p99")
    ]
    rest = """duration completed failed rejected unfinished total_input_tokens total_output_tokens
    request_throughput request_goodput output_throughput total_token_throughput slo_attainment
    slo_attainment_ttft slo_attainment_tpot offered_rate gpu_busy_frac gpu_busy_frac_prefill
    gpu_busy_frac_decode mfu padding_waste kv_usage_mean kv_usage_p99 preemptions oom_events
    saturation request_goodput_per_gpu output_throughput_per_gpu"""
    assert set(rest.split()) | set(latencies) <= set(summarise(record(), frame()))
