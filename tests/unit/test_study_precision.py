import math

import pytest

from sim.study.statistics.precision import Precision, parse_precision
from sim.types import BadInput


def summary(mean, half, n=10, tpot=math.nan):
    return {
        "n_replications": n,
        "mean_ttft_ms": mean,
        "mean_ttft_ms_ci_low": mean - half,
        "mean_ttft_ms_ci_high": mean + half,
        "mean_tpot_ms": tpot,
        "mean_tpot_ms_ci_low": tpot,
        "mean_tpot_ms_ci_high": tpot,
        "saturation": "stable",
    }


def test_what_the_command_line_says():
    assert parse_precision("2%", None, 100) == Precision(0.02)
    assert parse_precision("0.05", "a, b,a", 20) == Precision(0.05, ("a", "b"), 20)


@pytest.mark.parametrize(
    ("text", "cap", "said"),
    [
        ("two", 100, "--precision: 'two'; valid: a share such as 2% or 0.02"),
        ("2 %%", 100, "'2 %%'"),
        ("0", 100, "--precision: 0; valid: above 0"),
        ("nan", 100, "valid: above 0"),
        ("100%", 100, "valid: above 0, below 1"),
        ("2%", 9, "--max-replications: 9; valid: 10 or more"),
    ],
)
def test_what_it_cannot_say(text, cap, said):
    with pytest.raises(BadInput) as error:
        parse_precision(text, None, cap)
    assert said in str(error.value)


def test_the_next_round_is_what_the_width_asks_for():
    precision = Precision(0.02)
    assert precision.wanted([summary(100.0, 1.9)], 5) == 10
    assert precision.wanted([summary(100.0, 2.4)], 5) == 15  # 10 * 1.2**2, rounded up
    assert precision.wanted([summary(100.0, 50.0)], 5) == 20  # doubled at most
    assert precision.wanted([summary(100.0, 50.0, n=80)], 5) == 100  # the cap
    assert precision.wanted([summary(100.0, 1.0), summary(100.0, 2.4)], 5) == 15  # the widest


def test_there_are_ten_at_least_before_the_first_look():
    one = summary(100.0, math.nan, n=1)
    assert [Precision(0.1, cap=50).wanted([one], n) for n in (1, 10, 30, 90)] == [10, 10, 30, 50]


def test_defaults_that_are_undefined_do_not_count_but_named_ones_do():
    assert Precision(0.02).wanted([summary(100.0, 1.0)], 5) == 10
    assert Precision(0.02).wanted([summary(math.nan, math.nan)], 5) == 10
    named = Precision(0.02, ("mean_tpot_ms",))
    assert named.wanted([summary(100.0, 1.0)], 5) == 20
    assert "mean_tpot_ms is undefined or 0" in named.notes(summary(100.0, 1.0), 100)[0]
    zero = Precision(0.02, ("mean_ttft_ms",))
    assert zero.wanted([summary(0.0, 0.0)], 5) == 10
    assert zero.wanted([summary(0.0, 1.0)], 5) == 20


def test_what_was_not_reached_is_said():
    assert Precision(0.02).notes(summary(100.0, 2.0), 100) == ()
    (note,) = Precision(0.02).notes(summary(100.0, 3.456), 100)
    assert note.startswith("precision 2 % not reached with 100 replications, the most allowed: ")
    assert "mean_ttft_ms ± 3.46 %" in note


def test_unknown_figures_are_refused():
    with pytest.raises(BadInput, match="--of: unknown key 'mean_ttf'; did you mean 'mean_ttft_ms'"):
        Precision(0.02, ("mean_ttf",)).wanted([summary(1.0, 0.1)], 5)
    with pytest.raises(BadInput, match="unknown key 'saturation'"):
        Precision(0.02, ("saturation",)).wanted([summary(1.0, 0.1)], 5)
