"""Figures by class: by hand, and against the totals."""

import numpy as np
import pytest
from test_study_metrics import record

from sim.study.config import SloConfig
from sim.study.statistics.classes import BANDS, GROUPINGS, MAX_CLASSES, Outcomes, class_figures
from sim.study.statistics.metrics import Frame, summarise
from sim.study.statistics.stats import aggregate


def of(columns=None, slo=None, **frame):
    """Return the classes of the run of four requests of test_study_metrics.

    TTFT 1, 1.5, 0.5 s and none (rejected); TPOT 4/3, 1 s, none and none; prompts 20, 30, 10, 9999.
    """
    run = record()
    run.requests.update({k: np.array(v) for k, v in (columns or {}).items()})
    return summarise(run, Frame(slo=slo or SloConfig(), **frame))["classes"]


def test_every_grouping_is_there():
    classes = of({"source": ["a", "b", "a", "b"], "task": ["online", "offline"] * 2,
                  "priority": [10, 9, 10, 0]})  # fmt: skip
    assert tuple(classes) == GROUPINGS
    assert list(classes["source"]) == ["a", "b"]
    assert list(classes["task"]) == ["offline", "online"]
    assert list(classes["priority"]) == ["0", "9", "10"]  # by value, not by name
    assert tuple(classes["input_len"]) == BANDS


def test_figures_of_a_class_by_hand():
    short, long = (of({"source": ["a", "a", "b", "b"]})["source"][name] for name in "ab")
    assert (short["arrived"], short["completed"], short["rejected"]) == (2, 2, 0)
    assert short["mean_ttft_ms"] == pytest.approx(1250)
    assert short["p90_ttft_ms"] == pytest.approx(1450)
    assert short["mean_tpot_ms"] == pytest.approx((4000 / 3 + 1000) / 2)
    assert (long["arrived"], long["completed"], long["rejected"]) == (2, 1, 1)
    assert long["median_ttft_ms"] == pytest.approx(500)
    assert np.isnan(long["mean_tpot_ms"])  # its only request has one token


def test_a_dropped_class_has_attainment_zero():
    bands = of(slo=SloConfig(ttft_ms=2000))["input_len"]
    assert bands["1-128"]["slo_attainment"] == 1.0
    assert bands["8193+"]["slo_attainment"] == 0.0
    assert (bands["8193+"]["arrived"], bands["8193+"]["completed"]) == (1, 0)
    assert bands["129-512"]["arrived"] == 0
    assert np.isnan(bands["129-512"]["slo_attainment"])


@pytest.mark.parametrize(
    ("tokens", "band"),
    [(1, "1-128"), (128, "1-128"), (129, "129-512"), (512, "129-512"), (513, "513-2048"),
     (2048, "513-2048"), (2049, "2049-8192"), (8192, "2049-8192"), (8193, "8193+")],
)  # fmt: skip
def test_bands_hold_their_upper_end(tokens, band):
    bands = of({"input_len": [tokens] * 4})["input_len"]
    assert {name: c["arrived"] for name, c in bands.items() if c["arrived"]} == {band: 4}


def test_each_class_is_judged_by_its_own_bounds():
    source = {"source": ["chat", "code", "chat", "code"]}
    slo = SloConfig(ttft_ms=600, by={"code": {"ttft_ms": 1500, "tpot_ms": 900}})
    chat, code = (of(source, slo)["source"][name] for name in ("chat", "code"))
    # chat: 1000 and 500 ms against 600; no TPOT bound. code: 1500 ms in time, but TPOT 1000 ms.
    assert (chat["slo_attainment"], chat["slo_attainment_ttft"]) == (0.5, 0.5)
    assert chat["slo_attainment_tpot"] == 1.0
    assert (code["slo_attainment"], code["slo_attainment_ttft"]) == (0.0, 0.5)
    assert code["slo_attainment_tpot"] == 0.0


def test_without_bounds_there_is_no_attainment():
    assert np.isnan(of()["source"]["chat"]["slo_attainment"])


def test_the_window_is_that_of_the_totals():
    early = of(slo=SloConfig(ttft_ms=1000), warmup_s=1.5)["source"]["chat"]
    assert early["arrived"] == 3
    assert early["slo_attainment"] == pytest.approx(1 / 3)
    assert early["mean_ttft_ms"] == pytest.approx(1000)


@pytest.mark.parametrize("warmup_s", [0.0, 20.0])
@pytest.mark.parametrize("seed", range(5))
def test_classes_add_up_to_the_totals(seed, warmup_s):
    rng = np.random.default_rng(seed)
    n = 300
    arrival = np.sort(rng.uniform(0, 100, n))
    first = arrival + rng.exponential(1, n)
    run = record()
    run.requests.update(
        arrival_s=arrival,
        first_token_s=first,
        finish_s=first + rng.exponential(5, n),
        emitted_tokens=rng.integers(1, 50, n),
        input_len=rng.integers(1, 9000, n),
        source=np.array(["a", "b", "c"])[rng.integers(0, 3, n)],
        task=np.array(["online", "offline"])[rng.integers(0, 2, n)],
        priority=rng.integers(0, 4, n),
        status=np.array(["finished", "rejected", "aborted"])[rng.integers(0, 3, n)],
        preemptions=np.zeros(n, int),
        cached_tokens=np.zeros(n, int),
        prefill_start_s=arrival,
        prefill_end_s=first,
    )
    slo = SloConfig(ttft_ms=900, by={"b": {"ttft_ms": 300, "tpot_ms": 200}})
    total = summarise(run, Frame(slo=slo, warmup_s=warmup_s))
    for classes in total["classes"].values():
        arrived = np.array([c["arrived"] for c in classes.values()])
        assert arrived.sum() == (arrival >= warmup_s).sum()
        for key in ("slo_attainment", "slo_attainment_ttft", "slo_attainment_tpot"):
            met = sum(c[key] * c["arrived"] for c in classes.values())
            assert met / arrived.sum() == pytest.approx(total[key])
        weights = np.array([c["completed"] for c in classes.values()])
        means = np.array([c["mean_ttft_ms"] for c in classes.values()])
        assert np.nansum(weights * means) / weights.sum() == pytest.approx(total["mean_ttft_ms"])


def test_a_grouping_into_too_many_is_left_out():
    n = MAX_CLASSES + 1
    columns = {
        "source": np.full(n, "a"),
        "task": np.full(n, "online"),
        "priority": np.arange(n),
        "input_len": np.full(n, 5),
        "status": np.full(n, "finished"),
    }
    yes = np.ones(n, bool)
    outcomes = Outcomes(yes, yes, np.ones(n), np.ones(n), {})
    assert class_figures(columns, outcomes)["priority"] == {}
    columns["priority"] = np.arange(n) % MAX_CLASSES
    assert len(class_figures(columns, outcomes)["priority"]) == MAX_CLASSES


def test_classes_get_intervals_over_replications():
    runs = [{"x": 1, "classes": {"source": {"a": {"arrived": 3, "slo_attainment": share}}}}
            for share in (0.5, 0.7)]  # fmt: skip
    a = aggregate(runs)["classes"]["source"]["a"]
    assert a["slo_attainment"] == pytest.approx(0.6)
    assert a["slo_attainment_ci_high"] == pytest.approx(0.6 + 12.706 * 0.1, abs=1e-3)
    assert (a["arrived"], a["arrived_ci_low"]) == (3, 3)
    assert "n_replications" not in a


def test_a_class_that_a_replication_lacks_counts_nothing_there():
    runs = [{"classes": {"priority": {}}},
            {"classes": {"priority": {"7": {"arrived": 2, "mean_ttft_ms": 5.0}}}}]  # fmt: skip
    only = aggregate(runs)["classes"]["priority"]["7"]
    assert only["arrived"] == 1
    assert np.isnan(only["mean_ttft_ms"])
