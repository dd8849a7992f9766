import math

from sim.report.ranking import ranking_lines


def pair(better, worse, significant=True, p=0.0001, percent=31.04):
    ends = {"percent_ci_low": percent - 3, "percent_ci_high": percent + 3}
    tested = {"p": p / 2, "p_holm": p, "significant": significant}
    return (
        {"better": better, "worse": worse, "wins": 20, "n": 20, "percent": percent} | ends | tested
    )


def comparison(key, *pairs, higher=True):
    order = [pairs[0]["better"], *(p["worse"] for p in pairs)]
    return {"rankings": {key: {"higher_is_better": higher, "order": order, "pairs": list(pairs)}}}


def test_neighbours_in_the_order_are_compared():
    lines = ranking_lines(
        comparison("request_goodput", pair("a", "b"), pair("b", "[c]", False, 0.4, -0.04))
    )
    assert lines == [
        "ranking by goodput (paired t tests, Holm over 2 pairs):",
        "  a > b in 20 of 20 seeds, +31.0 % [28.0, 34.0], p < 0.001",
        "  b ~ [c] in 20 of 20 seeds, +0.0 % [-3.0, 3.0], p = 0.400: cannot be told apart",
    ]


def test_less_is_better_for_latencies():
    lines = ranking_lines(comparison("mean_e2el_ms", pair("a", "b", percent=-20.0), higher=False))
    assert lines[0].startswith("ranking by mean E2E (paired t tests, Holm over 1 pair)")
    assert "  a < b in 20 of 20 seeds, -20.0 % [-23.0, -17.0]" in lines[1]


def test_without_a_test_there_is_only_the_count():
    for nothing in (None, math.nan):
        lines = ranking_lines(comparison("request_goodput", pair("a", "b", False, 0.1) | {
            "p_holm": nothing, "percent": nothing, "wins": 1, "n": 1,
        }))  # fmt: skip
        assert lines[1] == "  a > b in 1 of 1 seeds"


def test_a_comparison_without_a_ranking_has_no_lines():
    assert ranking_lines({}) == []
    assert ranking_lines({"rankings": {"mean_ttft_ms": {}}}) == []
