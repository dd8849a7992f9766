"""Tables and picture of capacities, from contents written by hand."""

import copy
import json
import math

import pytest
from rich.console import Console

from sim.report.capacity import capacity_table, draw_capacity, sizes_table

KEYS = ("slo_attainment", "request_goodput_per_gpu", "output_throughput_per_gpu")


def interval(key, mean, half):
    return {key: mean, f"{key}_ci_low": mean - half, f"{key}_ci_high": mean + half}


def point(rate, share):
    figures = {"rate_per_s": rate, "rate_per_gpu_per_s": rate / 4}
    figures |= interval("slo_attainment", share, 0.02)
    figures["by_class"] = {"long": interval("slo_attainment", share - 0.1, 0.03)}
    for key in (*KEYS[1:], "p99_ttft_ms", "p99_tpot_ms"):
        figures |= interval(key, rate * 10, 1.0)
    return figures


def policy(capacity, **changes):
    there = point(capacity, 0.9)
    return {
        "num_gpus": 4,
        **interval("capacity_per_s", capacity, 0.3),
        **interval("capacity_per_gpu_per_s", capacity / 4, 0.075),
        "n_replications": 5,
        "is_lower_bound": False,
        "at_capacity": there,
        "curve": [point(capacity / 2, 0.99), there, point(capacity * 1.2, 0.7)],
        **changes,
    }


NONE = {"capacity_per_s": 0.0, "capacity_per_gpu_per_s": 0.0, "at_capacity": None, "curve": []}
CONTENT = {
    "model": "opt-13b",
    "gpu": "a100-80gb",
    "attainment": 0.9,
    "every_class": True,
    "baseline": "first",
    "policies": {
        "first": policy(5.0),
        "[bold]second": policy(7.5, is_lower_bound=True),
        "third": policy(0.0, **NONE),
    },
    "differences": {
        "[bold]second": {"percent": 50.0, "percent_ci_low": 45.0, "percent_ci_high": 55.0},
        "third": {"percent": -100.0, "percent_ci_low": math.nan, "percent_ci_high": math.nan},
    },
}


def text_of(renderable):
    console = Console(width=220, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def rows(text):
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_a_row_for_each_policy():
    text = text_of(capacity_table(CONTENT))
    found = rows(text)
    assert "5 ± 0" in found["first"]
    assert "1.250 ± 0.075" in found["first"]
    assert "80 ± 3" in found["first"]  # of the lowest class
    assert "lowest class there" in text
    of_all = text_of(capacity_table({**CONTENT, "every_class": False}))
    assert "90 ± 2" in rows(of_all)["first"]
    assert "attainment there" in of_all
    assert ">= 7.500 ± 0.300" in found["[bold]second"]
    assert "+50.0 % [+45.0, +55.0]" in found["[bold]second"]
    assert found["third"].count("none") == 2
    assert "-100.0 %" in found["third"]
    assert "0.9 of the requests meet every bound, in every class" in text
    assert "n=5 replications" in text


def test_one_policy_is_compared_with_nothing():
    alone = {**CONTENT, "policies": {"first": policy(5.0, n_replications=1)}, "differences": {}}
    text = text_of(capacity_table(alone))
    assert "against" not in text
    assert "n=1, no interval" in text


def layout(instances, share, reached=True, tp=1):
    return {
        "pools": [{"role": "mixed", "instances": instances, "tp": tp}],
        "num_gpus": instances * tp,
        "rate_per_gpu_per_s": 6 / (instances * tp),
        "reached": reached,
        **interval("slo_attainment", share, 0.01),
    }


SIZES = {
    "model": "opt-13b",
    "gpu": "a100-80gb",
    "rate_per_s": 6.0,
    "attainment": 0.9,
    "every_class": False,
    "price_per_gpu_hour": 2.5,
    "policies": {
        "first": {
            "best": layout(3, 0.93),
            "fewer": [layout(2, 0.62, False)],
            "others": [layout(1, 0.99, tp=4)],
            "costs": {
                "gpu_hours_per_day": 72.0,
                "gpu_hours_per_million_requests": 138.9,
                "cost_per_day": 180.0,
                "cost_per_million_requests": 347.2,
                "cost_per_million_output_tokens": 3.47,
            },
            "failures": {
                "without_spare": layout(3, 0.8, False),
                "n_plus_one": layout(4, 0.88, False),
                "enough": layout(5, 0.95),
            },
        },
        "second": {"best": None, "fewer": [], "others": [], "costs": None},
    },
}


def test_the_answer_and_what_stands_beside_it():
    text = text_of(sizes_table(SIZES))
    lines = text.splitlines()
    for wanted in (
        ("3 x mixed tp 1", "93 ± 1", "fewest"),
        ("2 x mixed tp 1", "62 ± 1", "one less"),
        ("1 x mixed tp 4", "1.500", "reaches it, too"),
        ("3 x mixed tp 1", "with failures: misses it"),
        ("4 x mixed tp 1", "N+1: misses it"),
        ("5 x mixed tp 1", "with failures: reaches it"),
        ("second", "none reaches the target"),
        ("72 GPU-hours a day", "138.9 a million requests", "180 a day", "3.470 a million output"),
    ):
        assert any(all(part in line for part in wanted) for line in lines), wanted


def test_n_plus_one_that_is_enough_is_shown_once():
    sizes = copy.deepcopy(SIZES)
    sizes["policies"]["first"]["failures"] |= {
        "n_plus_one": layout(4, 0.95),
        "enough": layout(4, 0.95),
    }
    assert text_of(sizes_table(sizes)).count("4 x mixed tp 1") == 1


@pytest.mark.parametrize("wide", [False, True])
def test_a_picture_that_repeats(tmp_path, wide):
    content = copy.deepcopy(CONTENT)
    if wide:
        content["policies"]["slow"] = policy(0.05)
    lone = copy.deepcopy(content["policies"]["first"])
    for figures in (lone, *lone["curve"]):
        for key in figures:
            if key.endswith(("_ci_low", "_ci_high")):
                figures[key] = None
    content["policies"]["n=1"] = lone
    (tmp_path / "capacity.json").write_text(json.dumps(content))
    path = draw_capacity(tmp_path)
    first = path.read_bytes()
    assert path.name == "capacity.png"
    assert first.startswith(b"\x89PNG")
    assert draw_capacity(tmp_path).read_bytes() == first
