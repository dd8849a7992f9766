import io
import math

import pytest
from rich.console import Console

from sim.report.tables import comparison_table, number, result_table


def printed(renderable):
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()


def summary(label, ttft_ms, saturation="stable", n=3):
    half = 1.5 if n > 1 else math.nan
    return {
        "label": label,
        "model": "opt-13b",
        "gpu": "h100",
        "num_gpus": 2,
        "n_replications": n,
        "saturation": saturation,
        "mean_ttft_ms": ttft_ms,
        "mean_ttft_ms_ci_low": ttft_ms - half,
        "mean_ttft_ms_ci_high": ttft_ms + half,
        "mfu": None,
    }


def difference(percent):
    ends = {"percent_ci_low": percent - 2, "percent_ci_high": percent + 2}
    return {"mean_ttft_ms": {"percent": percent, **ends}}


def test_a_figure_comes_with_its_interval_and_n():
    text = printed(result_table(summary("static", 123.456)))
    assert "123.5 ± 1.5" in text
    assert "n=3 replications" in text
    assert "opt-13b on 2 x h100" in text
    assert "MFU" not in text  # undefined everywhere


def test_one_replication_has_no_interval():
    text = printed(result_table(summary("static", 123.456, n=1)))
    assert "n=1, no interval" in text
    assert "±" not in text


def test_a_comparison_starts_with_the_baseline_and_shows_differences():
    comparison = {
        "baseline": "static",
        "policies": {"continuous": summary("continuous", 60), "static": summary("static", 120)},
        "differences": {"continuous": difference(-50)},
    }
    text = printed(comparison_table(comparison))
    assert text.index("static") < text.index("continuous")
    assert "-50.0 % ± 2.0" in text
    assert "paired" in text


def test_differences_of_shares_are_in_points():
    shares = {
        label: summary(label, 1)
        | {"slo_attainment": value, "slo_attainment_ci_low": value, "slo_attainment_ci_high": value}
        for label, value in (("a", 0.2), ("b", 0.9))
    }
    change = {"slo_attainment": {"diff": 0.7, "ci_low": 0.65, "ci_high": 0.75}}
    comparison = {"baseline": "a", "policies": shares, "differences": {"b": change}}
    assert "+70.0 pt ± 5.0" in printed(comparison_table(comparison))


def test_latencies_of_an_overloaded_run_are_marked():
    text = printed(result_table(summary("static", 120, "overloaded")))
    assert "120 ± 2*" in text
    assert "* overloaded: no steady state" in text
    assert "*" not in printed(result_table(summary("static", 120)))


def test_what_users_typed_is_not_markup():
    assert "[red]x[/red]" in printed(result_table(summary("[red]x[/red]", 1)))


def test_one_run_says_how_many_batches_its_intervals_are_from():
    batches = {"batch_means": {"a": {"batches": 40}, "b": {"batches": 10}, "c": {"batches": 20}}}
    text = printed(result_table(summary("static", 120) | {"n_replications": 1} | batches))
    assert "120 ± 2" in text
    assert "n=1: mean ± half of the 95 % interval by batch means (10-40 batches of one run)" in text


def test_backlogged_runs_are_doubted():
    assert "may be too narrow" in printed(result_table(summary("static", 120, "backlogged")))
    assert "may be too narrow" not in printed(result_table(summary("static", 120)))


def test_the_ranking_stands_below():
    pair = {"better": "b", "worse": "a", "wins": 3, "n": 3, "percent": -9.0, "p_holm": 0.01}
    pair |= {"percent_ci_low": -10.0, "percent_ci_high": -8.0, "significant": True}
    ranking = {"higher_is_better": False, "order": ["b", "a"], "pairs": [pair]}
    comparison = {
        "baseline": "a",
        "policies": {label: summary(label, 1) for label in "ab"},
        "differences": {"b": {}},
        "rankings": {"mean_e2el_ms": ranking},
    }
    text = printed(comparison_table(comparison))
    assert "b < a in 3 of 3 seeds, -9.0 % [-10.0, -8.0], p = 0.010" in text


def figures(arrived, share, ttft_ms):
    values = {"arrived": arrived, "slo_attainment": share, "p99_ttft_ms": ttft_ms}
    ends = {f"{k}_ci_{end}": v for k, v in values.items() for end in ("low", "high")}
    return values | ends


CLASSES = {
    "source": {"[chat]": figures(8, 0.97, 300.0), "book": figures(2, 0.0, math.nan)},
    "task": {"online": figures(10, 0.8, 300.0)},
    "input_len": {"1-128": figures(8, 0.97, 300.0), "129-512": figures(0, math.nan, math.nan)},
}


def test_classes_have_a_row_each():
    text = printed(result_table(summary("static", 120, n=1) | {"classes": CLASSES}))
    rows = {line.split()[1]: line.split()[2:] for line in text.splitlines() if "source" in line}
    assert rows["[chat]"] == ["8", "97", "300"]
    assert rows["book"] == ["2", "0", "-"]
    assert "task" not in text  # only one
    assert "1-128" not in text  # only one with requests
    assert "TPOT" not in text  # not known of any


def test_classes_of_a_comparison_have_a_row_for_each_policy():
    other = CLASSES | {"source": {"[chat]": figures(8, 0.5, 900.0)}}
    policies = {
        "a": summary("a", 1) | {"classes": CLASSES},
        "b": summary("b", 1, "overloaded") | {"classes": other},
    }
    change = {"slo_attainment": {"diff": -0.47, "ci_low": -0.49, "ci_high": -0.45}}
    differences = {"b": {"classes": {"source": {"[chat]": change}}}}
    text = printed(
        comparison_table({"baseline": "a", "policies": policies, "differences": differences})
    )
    lines = text.splitlines()
    first = next(at for at, line in enumerate(lines) if "[chat]" in line)
    assert lines[first].split() == ["source", "[chat]", "a", "8", "97", "300", "-"]
    assert lines[first + 1].split() == ["b", "8", "50", "900*", "-47.0", "pt", "±", "2.0"]
    assert lines[first + 3].split()[:2] == ["b", "-"]  # it served no book


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0, "0"), (12, "12"), (1234567.8, "1,234,568"), (12.3456, "12.35"), (0.0123456, "0.0123"),
     (math.nan, "-")],
)  # fmt: skip
def test_numbers_have_four_digits(value, wanted):
    assert number(value) == wanted
