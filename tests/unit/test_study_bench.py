import re
from pathlib import Path

import pytest

from policies import names
from sim.core.yardstick import bare_timeout_s
from sim.study import bench

CASE = {"policy": "continuous v0", "load": 0.9, "n": 200, "rate": 4.0}


def test_a_case_is_measured_in_units_of_the_yardstick():
    measured = bench.measure(CASE)
    assert measured["us_per_request"] == pytest.approx(measured["cpu_s"] / 200 * 1e6)
    assert measured["timeouts_per_request"] == pytest.approx(
        measured["us_per_request"] / measured["timeout_us"]
    )
    assert measured["requests_per_cpu_s"] == pytest.approx(1e6 / measured["us_per_request"])
    assert measured["events_per_request"] > measured["spans_per_request"] > 0
    assert measured["peak_rss_bytes"] > 10_000_000


def test_the_yardstick_is_below_ten_microseconds():
    assert 1e-8 < bare_timeout_s(2000) < 1e-5


def test_growth_is_the_slope_of_logarithms():
    cases = [
        {"policy": label, "load": load, "n": n, "cpu_s": 3e-6 * n**1.5}
        for label in bench.POLICIES
        for load in bench.LOADS
        for n in (100, 1000, 10_000)
    ]
    assert {round(row["exponent"], 6) for row in bench._growth(cases)} == {1.5}


def test_every_policy_load_and_size_is_a_case():
    labels = (*bench.POLICIES, *bench.OTHERS)
    cases = list(bench._cases((10, 20, 30), dict.fromkeys(labels, 1.0)))
    assert len(cases) == 3 * 3 * 3 + len(bench.OTHERS) * 3
    named = {"continuous v0", "continuous v1"}
    variants = named | {bench.AHEAD, bench.RESCUES, bench.SPECULATES}
    assert {c["policy"] for c in cases} - variants <= set(names())
    assert bench.experiment(CASE | {"policy": bench.AHEAD}).engine.async_scheduling
    (bounded, *_) = (bench.experiment(c) for c in cases if c["policy"] == bench.RESCUES)
    assert (bounded.policies[0].name, bounded.cluster.count) == ("ascendra", 3)
    assert bounded.slo.ttft_ms == 1000
    assert bounded.workload.arrivals.rate == pytest.approx(3 * 0.9)
    pages = (Path(__file__).resolve().parents[2] / "docs" / "policies").glob("*.md")
    described = {
        name for page in pages for name in re.findall("^## `(.*)`$", page.read_text(), re.M)
    }
    assert len(described) > 10
    assert described <= {c["policy"].split()[0].rstrip(",") for c in cases}
    assert bench.experiment(cases[0] | {"instances": 16}).cluster.count == 16


def test_the_table_can_be_printed(capsys):
    measured = bench.measure(CASE)
    fusing = [CASE | {"instances": 16, "ratio": 3.0}]
    growth = [{"policy": "static", "load": 0.5, "exponent": 1.0}]
    bars = [{"line": "fusing", "figure": "1.9", "met": False}]
    bench._print({"cases": [measured], "growth_exponents": growth, "fusing": fusing, "bars": bars})
    out = capsys.readouterr().out
    assert "continuous v0" in out
    assert "growth static at 50%: n^1.000" in out
    assert "16 instances at 90%: 3.0" in out
    assert "MISSED  fusing: 1.9" in out


def test_bars_are_met_or_missed():
    cases = [
        {
            "policy": label,
            "load": load,
            "n": 10,
            "cpu_s": 1.0,
            "peak_rss_bytes": 5e8,
            "us_per_request": 10.0 * load,
            "timeouts_per_request": limit,
        }
        for label, limit in bench.TIMEOUT_BARS.items()
        for load in bench.LOADS
    ]
    fusing = [{"policy": "static", "instances": 16, "load": 0.5, "ratio": 1.9}]
    growth = [{"policy": "static", "load": 0.9, "exponent": 1.06}]
    found = {"cases": cases, "fusing": fusing, "growth_exponents": growth}
    assert {row["line"] for row in bench.bars(found) if not row["met"]} == {
        "fusing, static, 16 instances at 50 %: ratio >= 2",
        "static at 90 %: growth exponent in 0.95-1.05",
    }
    cases[1]["timeouts_per_request"] += 0.1
    assert sum(not row["met"] for row in bench.bars(found)) == 3


def test_a_case_that_fails_says_why():
    with pytest.raises(RuntimeError, match="rate: Input should be greater than 0"):
        bench._measured_apart(CASE | {"rate": -1})
