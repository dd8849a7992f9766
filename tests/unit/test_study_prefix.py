"""Prefix caching from a config to a summary."""

from __future__ import annotations

import pytest

from sim.study.config import resolve
from sim.study.run import run
from sim.types import BadInput


def config(workload, **engine):
    arrivals = {"process": "constant", "rate": 4.0}
    data = {
        "cluster": {"gpu": "a100-80gb", "count": 1, "model": "opt-13b"},
        "policy": {"name": "continuous"},
        "workload": {"source": "fixed", "input_len": 100, "output_len": 20, "num_requests": 40}
        | {"arrivals": arrivals}
        | workload,
        "engine": engine,
        "run": {"replications": 1},
    }
    return resolve(data, "test")


def test_hit_rate_counts_tokens_looked_up_and_found():
    """40 prompts of 132 tokens of which 32 are shared: all but the first find 2 blocks."""
    done = run(config({"shared_prefix": {"tokens": 32}}, enable_prefix_caching=True))
    summary = done.summary
    assert summary["prefix_cache_queries"] == 40 * 132
    assert summary["prefix_cache_hits"] == 39 * 32
    assert summary["prefix_cache_hit_rate"] == pytest.approx(39 * 32 / (40 * 132))
    assert not any("found nothing" in note for note in done.notes)


def test_without_caching_nothing_is_said():
    done = run(config({"shared_prefix": {"tokens": 32}}))
    assert not [key for key in done.summary if key.startswith("prefix_cache")]
    assert not done.replications[0].record.requests["cached_tokens"].any()


def test_a_run_that_finds_nothing_says_so():
    done = run(config({}, enable_prefix_caching=True))
    assert any("prefix caching found nothing" in note for note in done.notes)
    assert done.summary["prefix_cache_hit_rate"] == 0


def test_caching_saves_time_and_nothing_else():
    off, on = (
        run(config({"shared_prefix": {"tokens": 320}}, enable_prefix_caching=cache)).summary
        for cache in (False, True)
    )
    assert on["mean_ttft_ms"] < 0.8 * off["mean_ttft_ms"]
    assert on["completed"] == off["completed"] == 40
    assert on["total_output_tokens"] == off["total_output_tokens"]


def test_groups_without_lengths_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_len,output_len,prefix_group\n0,9,1,4\n1,9,1,4\n")
    wanted = "has prefix_group but no shared_prefix_tokens .*engine.enable_prefix_caching"
    data = {"source": str(path), "num_requests": None, "arrivals": None}
    data |= {"input_len": None, "output_len": None}
    with pytest.raises(BadInput, match=wanted):
        run(config(data, enable_prefix_caching=True))
    assert run(config(data)).summary["completed"] == 2
