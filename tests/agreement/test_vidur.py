"""Our `continuous` (V0) and `sarathi` form Vidur's batches, one by one.

Switches, differences and what these runs do not reach: `runs.py`.
"""

import math

import numpy as np
import pytest
from lookup import LAYERS, SEVERAL, VidurCost
from peers import needs_peers, requests, table
from runs import (
    VIDUR_BLOCKS,
    VIDUR_POLICIES,
    VIDUR_SEQS,
    VIDUR_WATERMARK,
    equal_batches,
    errors,
    unrounded_entries,
    vidur,
    vidur_batches,
)

pytestmark = needs_peers

MEAN_BAR, MAX_BAR = 0.1, 1.0
"""Percent, TTFT and E2E of every request."""
DECIMALS_MS, DIGITS = 0.5e-6, 0.5e-5
"""Tables and records have six decimals of a millisecond, or six digits where that is less."""


def recorded(policy):
    name = f"vidur_{policy}_q2_n1000"
    return table(f"{name}_batches"), table(f"{name}_requests")


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "step-by-step"])
@pytest.mark.parametrize("policy", VIDUR_POLICIES)
def test_every_batch_is_vidurs(policy, fuse, record_property):
    batches, times = recorded(policy)
    cost = VidurCost(unrounded_entries(VidurCost()))
    record = vidur(policy, cost, fuse)
    equal = equal_batches(vidur_batches(record, cost), batches)
    off = errors(record, times)
    if fuse:
        figure = f"{equal} of {len(batches)} batches equal; TTFT {off['ttft']}; E2E {off['e2e']}"
        record_property("evidence", f"agreement with Vidur, {policy}: {figure}")
    assert equal == len(batches) == record.steps["n_steps"].sum()
    for error in off.values():
        assert error.mean <= MEAN_BAR
        assert error.most <= MAX_BAR
    assert record.counters["preemptions_recompute"] == 0


def rounding_ms(step_ms):
    """How far a step may be off: ten operators and two attention kernels a layer."""
    return LAYERS * 12 * DECIMALS_MS + step_ms * DIGITS


def half_a_digit(ms):
    """Half a unit in the last of four significant digits."""
    return 0.5 * 10 ** (math.floor(math.log10(ms)) - 3)


@pytest.mark.parametrize("policy", VIDUR_POLICIES)
def test_every_step_costs_what_vidur_recorded(policy):
    batches, _ = recorded(policy)
    cost = VidurCost(unrounded_entries(VidurCost()))
    ours = vidur_batches(vidur(policy, cost), cost)
    off = np.abs(ours["duration_ms"] - batches.exec_ms.to_numpy())
    assert (off <= rounding_ms(ours["duration_ms"])).all()
    # The clocks come no further apart than that adds up to.
    apart = np.abs(ours["start_ms"] - batches.start_s.to_numpy() * 1e3)
    assert apart.max() <= off.sum() + 1e-3


def test_the_entries_found_are_those_published_within_their_rounding():
    cost = VidurCost()
    entries = unrounded_entries(cost)
    assert len(entries) > 500
    for key, ms in entries.items():
        published = cost.published(key)
        assert abs(ms - published) <= half_a_digit(published) + DECIMALS_MS, key


def test_with_the_table_as_published_sarathi_differs_first_at_a_tie(record_property):
    """The clocks have come apart by the rounding of the table, and a request arrives in between."""
    batches, times = recorded("sarathi")
    cost = VidurCost()
    record = vidur("sarathi", cost)
    ours = vidur_batches(record, cost)
    at = equal_batches(ours, batches)
    start_ms = batches.start_s.to_numpy() * 1e3
    # Each step before it took what Vidur's did, within the rounding of the table's entries ...
    off = np.abs(ours["duration_ms"][:at] - batches.exec_ms.to_numpy()[:at])
    for step in range(at):
        kv, root = (int(ours[n][step]) for n in ("prefill_kv_rounded_sum", "prefill_rss_chunk"))
        bound = rounding_ms(ours["duration_ms"][step])
        if kv:
            bound += LAYERS * SEVERAL * half_a_digit(cost.published((kv, root)))
        assert off[step] <= bound, step
    # ... and at this one the other clock is on the other side of an arrival.
    ends = sorted((ours["start_ms"][at], start_ms[at]))
    arrivals = requests().arrival_s * 1e3
    between = arrivals[(arrivals > ends[0]) & (arrivals <= ends[1])]
    assert len(between) == 1
    apart = ends[1] - ends[0]
    assert apart <= off.sum() + 1e-3
    figure = f"{at} of {len(batches)} batches equal, then clocks {apart:.3f} ms apart"
    record_property("evidence", f"Vidur's sarathi with its rounded table: {figure}")
    for error in errors(record, times, until_s=ends[0] / 1e3).values():
        assert error.mean <= MEAN_BAR
        assert error.most <= MAX_BAR
    # The request arrives between them and is in the batch of the later clock alone.
    later = ours if ours["start_ms"][at] > start_ms[at] else batches
    earlier = batches if later is ours else ours
    assert later["n_prefill_reqs"][at] == earlier["n_prefill_reqs"][at] + 1


def test_what_these_runs_do_not_reach():
    """Memory and seats never run out: eviction, watermark and caps are tested elsewhere."""
    for policy in VIDUR_POLICIES:
        batches, times = recorded(policy)
        running = batches.n_decode_reqs + batches.n_prefill_reqs
        blocks = batches.decode_kv_sum // 16 + running + batches.prefill_tokens // 16
        assert times.restarts.max() == 0
        assert running.max() < VIDUR_SEQS
        assert blocks.max() < VIDUR_BLOCKS * (1 - VIDUR_WATERMARK) / 2
