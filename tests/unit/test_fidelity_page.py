"""The fidelity page: what is claimed, and that it says what was found."""

from dataclasses import replace

import pytest
from fidelity_runs import served

from sim.report.fidelity_page import claim, page
from sim.study.fidelity.cases import Case, judge, read_cases
from sim.study.fidelity.errors import ALL, Figure
from sim.types import BadInput

FIGURE = Figure(ALL, "tpot", "mean", "ms", 100, 100.0, 102.9)


@pytest.mark.parametrize(
    ("changes", "claimed"),
    [
        ({}, "absolute"),
        ({"simulated": 103.1}, "ranking"),
        ({"metric": "ttft", "simulated": 109.0}, "absolute"),
        ({"metric": "ttft", "band": "16 or more in flight, no free seat"}, "ranking"),
        ({"requests": 9}, "-"),
        ({"metric": "slo", "unit": "share", "measured": 0.9, "simulated": 0.86}, "absolute"),
        ({"metric": "slo", "unit": "share", "measured": 0.9, "simulated": 0.84}, "ranking"),
    ],
)
def test_claims_follow_the_bars(changes, claimed):
    assert claim(replace(FIGURE, **changes)) == claimed


def test_the_page_says_what_was_found(tmp_path):
    served(tmp_path / "run.csv", "engine.host_step_ms=2")
    settings = ("cluster.gpu=a100-80gb", "cluster.model=llama-2-7b", "slo.ttft_ms=100")
    case = Case(
        name="own", title="Own run", source="ourselves", result="run.csv", settings=settings,
        fit="host_step_ms", kv="guessed",
    )  # fmt: skip
    judged = judge(case, tmp_path, tmp_path / "engines")
    text = page([judged], "img")
    for heading in ("At a glance", "Noise floor", "Own run", "By load band", "What each part"):
        assert heading in text
    value = judged.fitted.values_ms["host_step_ms"]
    assert value == pytest.approx(2.0, rel=0.1)
    assert f"| 0-59 (all) | {value:.3g} ±" in text
    assert "| host_step_ms 0 | " in text
    assert str(tmp_path) not in text.replace(judged.engine_file.as_posix(), "")
    assert (tmp_path / "engines" / "own.yaml").is_file()
    assert {half.fitted.rows for half in judged.halves} == {(0, 29), (30, 59)}


def test_bad_cases(tmp_path):
    path = tmp_path / "cases.yaml"
    path.write_text("cases: {}\n")
    with pytest.raises(BadInput, match="expected a list `cases`"):
        read_cases(path)
    path.write_text("cases: [{name: a, colour: red}]\n")
    with pytest.raises(BadInput, match=r"cases.yaml: unknown key 'cases.0.colour'"):
        read_cases(path)
