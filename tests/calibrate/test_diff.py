"""Errors between a real and a simulated run, from invented rows."""

import numpy as np
import pandas as pd
import pytest

from calibrate.diff import Difference, compare, figures, markdown, same_requests
from calibrate.pictures import draw_replay


def rows(side, scale=1.0, policy="continuous", load=0.8, n=4):
    """Return n requests: TTFT 1 s, 3 s per further token of three, all times scaled."""
    arrival = np.arange(n, dtype=float)
    return pd.DataFrame(
        {
            "policy": policy,
            "load": load,
            "side": side,
            "request_id": range(n),
            "arrival_s": arrival,
            "input_len": 10,
            "output_len": 3,
            "emitted_tokens": 3,
            "status": "finished",
            "first_token_s": arrival + scale,
            "finish_s": arrival + 7 * scale,
        }
    )


def test_figures_by_hand():
    found = figures(rows("real"))
    assert found["mean_ttft_ms"] == 1000
    assert found["p90_tpot_ms"] == 3000
    assert found["p50_e2el_ms"] == 7000
    assert found["request_throughput"] == 4 / 10  # the last finishes at 10 s


def test_requests_of_one_token_have_no_tpot_and_unfinished_none_at_all():
    table = rows("real")
    table.loc[0, ["emitted_tokens", "finish_s"]] = [1, 1.0]
    table.loc[1, "status"] = "unfinished"
    found = figures(table)
    assert found["mean_tpot_ms"] == 3000
    assert found["mean_e2el_ms"] == pytest.approx((1000 + 7000 + 7000) / 3)


def test_errors_are_shares_of_the_real_figure():
    sides = (("real", 1.0), ("simulated", 1.1), ("repeated", 0.95), ("longer", 1.32))
    table = pd.concat([rows(side, scale) for side, scale in sides])
    compared = {row.figure: row for row in compare(table)}
    assert compared["mean_tpot_ms"].error == pytest.approx(0.1)
    assert compared["mean_tpot_ms"].spread == pytest.approx(-0.05)
    assert compared["mean_tpot_ms"].response == pytest.approx(0.2)
    assert len(compared) == 10


def test_the_same_requests():
    real, simulated = rows("real"), rows("simulated", 2.0)
    assert same_requests(real, simulated)
    for column in ("output_len", "emitted_tokens", "request_id"):
        changed = simulated.copy()
        changed.loc[2, column] += 1
        assert not same_requests(real, changed)
    changed = simulated.copy()
    changed.loc[0, "status"] = "aborted"
    assert not same_requests(real, changed)


def test_markdown_says_what_is_met():
    table = pd.concat([rows("real"), rows("simulated", 1.05), rows("longer", 1.26)])
    text = markdown(compare(table), ["On a bench."])
    assert "On a bench." in text
    assert "## continuous at 80% of the saturation rate" in text
    (tpot,) = [line for line in text.splitlines() if line.startswith("| mean_tpot_ms")]
    assert tpot.split("|")[3:8] == [" 3150 ", " +5.0% ", " MISSED, 3% ", "  ", " +20.0% "]
    (ttft,) = [line for line in text.splitlines() if line.startswith("| p90_ttft_ms")]
    assert "met, 7%" in ttft


@pytest.mark.parametrize(
    ("figure", "load", "bar"),
    [
        ("mean_tpot_ms", 0.5, 0.03),
        ("mean_ttft_ms", 0.8, 0.07),
        ("p90_e2el_ms", 0.8, 0.07),
        ("p50_ttft_ms", 0.8, None),
        ("request_throughput", 1.0, 0.05),
        ("mean_ttft_ms", 1.0, None),
        ("mean_e2el_ms", 1.0, 0.05),
    ],
)
def test_bars(figure, load, bar):
    assert Difference("static", load, figure, 1.0, 1.0, 1.0, 1.0).bar == bar


def test_the_picture_has_a_row_for_each_policy(tmp_path):
    parts = [
        rows(side, scale, policy, load)
        for policy in ("static", "continuous")
        for load in (0.5, 0.8)
        for side, scale in (("real", 1.0), ("simulated", 1.1))
    ]
    draw_replay(pd.concat(parts), "tiny on cpu", tmp_path / "cdf.png")
    assert (tmp_path / "cdf.png").stat().st_size > 10_000
