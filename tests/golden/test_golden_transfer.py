"""From prefill to decode by hand: links and their contention, back-pressure, pipelines.

Costs: a prefill step lasts 1 s, a decode step 1 s, whatever they hold. One KV token is 10 MB, so a
prompt of 100 tokens is 1 GB.
"""

import numpy as np
import pytest

from policies.bucketserve import Bucketserve, BucketserveConfig
from policies.continuous import Continuous, ContinuousConfig
from policies.distserve import Distserve, DistserveConfig
from sim.core.pipeline import Pipeline
from sim.core.records import KINDS
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace

COST = AffineCost(prefill_base_s=1.0, decode_base_s=1.0)
GB = 1e9


def trace(*rows):
    arrival, prompts, outputs = zip(*rows, strict=True)
    return Trace(np.array(prompts), np.array(outputs), np.array(arrival, dtype=float))


def spec(role, blocks=1000, **options):
    return InstanceSpec(COST, blocks, 1, role=role, kv_token_bytes=10_000_000, **options)


def both_modes(requests, specs, config=None, **options):
    """Run fused and step by step; return the columns, which must agree."""
    found = []
    for fuse in (True, False):
        policy = Distserve(config or DistserveConfig(padded=False, ready_threshold=1.0))
        settings = Settings(fuse_steps=fuse, **{"link_bytes_per_s": 10 * GB, **options})
        found.append(simulate(requests, policy, specs, settings).requests)
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name], err_msg=name)
    return found[0]


def near(column, *wanted):
    np.testing.assert_allclose(column, wanted, rtol=0, atol=1e-12)


def test_two_transfers_share_a_link():
    # Both prompts are prefilled in one batch until 1 s; 1 GB each over one link of 10 GB/s, each at
    # half the bandwidth: both end at 1.2 s. They join together: tokens 2 and 3 at 2.2 and 3.2 s.
    record = both_modes(trace((0, 100, 3), (0, 100, 3)), [spec("prefill"), spec("decode")])
    near(record["prefill_end_s"], 1.0, 1.0)
    near(record["first_token_s"], 1.0, 1.0)
    near(record["transfer_start_s"], 1.0, 1.0)
    near(record["transfer_end_s"], 1.2, 1.2)
    near(record["finish_s"], 3.2, 3.2)


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_a_free_transfer_is_in_time_for_the_step_it_is_pulled_at(overlap):
    # A: prefilled until 1 s, tokens 2 to 5 at 2, 3, 4, 5 s. B: prefilled from 1.25 to 2.25 s, in
    # the middle of a step; pulled at its end (3 s) it decodes from 3 to 4 s. C, prefilled from 3 to
    # 4 s, comes at a step's end: in time for it.
    # With a latency of 1 us the KV is on its way when B's and C's steps are formed: one step later.
    requests = trace((0, 100, 6), (1.25, 100, 2), (3, 100, 2))
    specs = [spec("prefill"), spec("decode")]
    free = {"link_overlap": overlap, "link_latency_s": 0.0}
    if overlap == 0.0:
        free["link_bytes_per_s"] = float("inf")
    record = both_modes(requests, specs, **free)
    near(record["transfer_start_s"], 1.0, 3.0, 4.0)
    near(record["transfer_end_s"], 1.0, 3.0, 4.0)
    near(record["finish_s"], 6.0, 4.0, 5.0)
    late = both_modes(requests, specs, **{**free, "link_latency_s": 1e-6})
    near(late["finish_s"], 6.000001, 5.000001, 6.000001)


def test_free_transfers_give_the_source_its_blocks_back():
    # One prompt at a time fits the prefill instance: B starts the moment A has been pulled.
    requests = trace((0, 100, 2), (0, 100, 2))
    specs = [spec("prefill", blocks=100), spec("decode")]
    record = both_modes(requests, specs, link_bytes_per_s=float("inf"))
    near(record["prefill_start_s"], 0.0, 1.0)
    near(record["finish_s"], 2.0, 3.0)


def test_two_links_do_not():
    # Two prefill and two decode instances, requests in turn: a link each, 0.1 s.
    specs = [spec("prefill"), spec("prefill"), spec("decode"), spec("decode")]
    requests = trace((0, 100, 3), (0, 100, 3))
    record = both_modes(requests, specs, router="round-robin", decode_router="round-robin")
    near(record["transfer_end_s"], 1.1, 1.1)
    near(record["finish_s"], 3.1, 3.1)
    # The same instances on one shared link.
    shared = both_modes(
        requests, specs, router="round-robin", decode_router="round-robin", link_shared=True
    )
    near(shared["transfer_end_s"], 1.2, 1.2)


def test_a_transfer_that_starts_later_slows_the_first():
    # A leaves at 1 s alone: 2 GB. B's prompt (prefilled 1 to 2 s, for A's batch held A only) leaves
    # at 2 s, when A is long gone. With 0.05 of the bandwidth (0.5 GB/s) they meet instead: A has
    # moved 0.5 GB of 2 when B starts at 2 s; at half speed each, B's 0.5 GB take 2 s (until 4 s),
    # A has moved 1 GB by then and finishes its last 1 GB alone in 2 s: 6 s.
    requests = trace((0, 200, 2), (0, 50, 2))
    config = DistserveConfig(padded=False, ready_threshold=1.0, max_num_batched_tokens=200)
    found = []
    for fuse in (True, False):
        settings = Settings(fuse_steps=fuse, link_bytes_per_s=0.5 * GB)
        policy = Distserve(config)
        found.append(
            simulate(requests, policy, [spec("prefill"), spec("decode")], settings).requests
        )
    for record in found:
        near(record["prefill_end_s"], 1.0, 2.0)
        near(record["transfer_start_s"], 1.0, 2.0)
        near(record["transfer_end_s"], 6.0, 4.0)


def test_latency_and_overlap():
    # Half the transfer is hidden behind the prefill: 0.05 s, after 0.25 s of latency.
    requests, specs = trace((0, 100, 2)), [spec("prefill"), spec("decode")]
    record = both_modes(requests, specs, link_latency_s=0.25, link_overlap=0.5)
    near(record["transfer_end_s"], 1.3)


def test_first_token_from_the_decode_instance():
    # vLLM's proxy: the decode instance emits token 1, after transfer (1.1 s) and one step.
    requests, specs = trace((0, 100, 3)), [spec("prefill"), spec("decode")]
    record = both_modes(requests, specs, first_token="decode")
    near(record["first_token_s"], 2.1)
    near(record["finish_s"], 4.1)


def test_back_pressure():
    # The decode instance holds 120 tokens, each request needs 100 + 3. The first decodes from 1.1
    # to 4.1 s (tokens 2 to 4); only then is the second pulled, in 0.1 s. Its KV stays on the
    # prefill side meanwhile, which has room for one prompt and a half: the third waits for it.
    specs = [spec("prefill", 150), spec("decode", 120)]
    requests = trace((0, 100, 4), (0, 100, 4), (0, 100, 4))
    record = both_modes(requests, specs)
    # Prefill: 0-1; the first's blocks are free at 1.1, 1.1-2.1; the second's at 4.2, 4.2-5.2.
    near(record["prefill_start_s"], 0.0, 1.1, 4.2)
    near(record["transfer_start_s"], 1.0, 4.1, 7.2)
    near(record["transfer_end_s"], 1.1, 4.2, 7.3)
    near(record["finish_s"], 4.1, 7.2, 10.3)


def test_a_pull_in_mid_span_does_not_end_it():
    # A decodes from 1.1 s in steps of 1 s. B is prefilled from 2.05 to 3.05 s; it is pulled when
    # the step under way ends, at 3.1, is there at 3.2 and joins at the next step end, 4.1: A's
    # first three steps stay one span.
    requests = trace((0, 100, 8), (2.05, 100, 3))
    specs = [spec("prefill"), spec("decode")]
    record = both_modes(requests, specs)
    near(record["transfer_start_s"], 1.0, 3.1)
    near(record["transfer_end_s"], 1.1, 3.2)
    near(record["finish_s"], 8.1, 6.1)
    policy = Distserve(DistserveConfig(padded=False, ready_threshold=1.0))
    steps = simulate(requests, policy, specs, Settings(link_bytes_per_s=10 * GB)).steps
    decodes = steps[steps["instance"] == 1]
    near(decodes["start_s"], 1.1, 4.1, 6.1)
    assert decodes["n_steps"].tolist() == [3, 2, 2]
    assert decodes["kv_tokens"].tolist() == [100, 203, 105]


def test_a_pull_in_mid_span_takes_the_room_to_grow():
    # A copy takes 4 s, the decode side has 204 blocks of one token. A is there at 5 s; B is
    # prefilled from 5.05 to 6.05 and pulled at 7, when A caches 102: 2 blocks are left, and at 9 s
    # A (104 tokens cached, 5 emitted) cannot grow and is evicted. Its 105 tokens do not fit beside
    # B, who arrives at 11, emits 2 and 3 and leaves at 13. A is recomputed until 14 (token 6).
    requests = trace((0, 100, 8), (5.05, 100, 3))
    for fuse in (True, False):
        policy = Distserve(DistserveConfig(padded=False, ready_threshold=1.0))
        settings = Settings(fuse_steps=fuse, link_bytes_per_s=0.25 * GB)
        specs = [spec("prefill"), spec("decode", 204)]
        record = simulate(requests, policy, specs, settings).requests
        near(record["transfer_start_s"], 1.0, 7.0)
        near(record["finish_s"], 16.0, 13.0)
        assert record["preemptions"].tolist() == [1, 0]


def test_a_pull_in_mid_span_that_leaves_no_room_to_grow_ends_it():
    # As before, but this policy pulls whenever the prompt itself fits, and 202 blocks are there: B,
    # pulled at 7 s, takes the last that A (102 tokens cached, 3 emitted) would grow into. A's span
    # of 5 to 12 s ends after two steps, and A is evicted.
    class Greedy(Distserve):
        def can_accept(self, view, request):
            return view.blocks_for(request.prefilled) <= view.free_blocks

    requests = trace((0, 100, 8), (5.05, 100, 3))
    found = []
    for fuse in (True, False):
        policy = Greedy(DistserveConfig(padded=False, ready_threshold=1.0))
        settings = Settings(fuse_steps=fuse, link_bytes_per_s=0.25 * GB)
        specs = [spec("prefill"), spec("decode", 202)]
        record = simulate(requests, policy, specs, settings)
        near(record.requests["transfer_start_s"], 1.0, 7.0)
        assert record.requests["preemptions"].tolist() == [1, 0]
        decodes = record.steps[record.steps["kind"] == KINDS.index("decode")]
        near(decodes["start_s"][:1], 5.0)
        found.append((int(decodes["n_steps"].sum()), record.requests["finish_s"].tolist()))
        if fuse:
            assert decodes["n_steps"][0] == 2
    assert found[0] == found[1]


def test_a_pipeline_of_two_stages():
    # Prefill 4 s, decode 2 s, half of it in each stage. Requests 0 and 2 run on lane 0, 1 on lane
    # 1, whole prompts first. Stage 1 | stage 2:
    #   lane 0 prefills 0:        0-2 | 2-4
    #   lane 1 prefills 1:        2-4 | 4-6    (stage 1 was busy until 2)
    #   lane 0 prefills 2:        4-6 | 6-8
    #   lane 1 decodes 1:         6-7 | 8-9    (stage 2 was busy until 8); done
    #   lane 0 decodes 0 and 2:   8-9 | 9-10   2 is done
    #   lane 0 decodes 0:       10-11 | 11-12  0 is done
    cost = AffineCost(prefill_base_s=4.0, decode_base_s=2.0)
    lanes = [InstanceSpec(cost, 100, 16, pipeline=0, stages=2) for _ in range(2)]
    requests = trace((0, 10, 3), (0, 10, 2), (1, 10, 2))
    for fuse in (True, False):
        policy = Continuous(ContinuousConfig(scheduler="v0"))
        record = simulate(requests, policy, lanes, Settings(fuse_steps=fuse)).requests
        assert record["prefill_instance"].tolist() == [0, 1, 0]
        near(record["prefill_start_s"], 0, 2, 4)
        near(record["prefill_end_s"], 4, 6, 8)
        near(record["finish_s"], 12, 9, 10)


@pytest.mark.parametrize(("stages", "duration"), [(2, 7), (3, 10), (4, 1)])
def test_stages_share_a_step_to_the_last_femtosecond(stages, duration):
    pipeline = Pipeline(stages)
    assert pipeline.enter(5, duration) == 5 + duration
    assert pipeline.free_fs[-1] == 5 + duration


def test_a_monitor_stops_when_the_last_request_is_rejected():
    # A prompt of 900 tokens fits no decode instance of 500: rejected on arrival, the last one, and
    # nothing is left to sample for.
    requests = trace((0, 100, 2), (1, 900, 2))
    config = BucketserveConfig(nmax_length="mean", monitor_period_s=0.5, padded=False)
    settings = Settings(link_bytes_per_s=10 * GB)
    specs = [spec("prefill"), spec("decode", 500)]
    record = simulate(requests, Bucketserve(config), specs, settings)
    assert record.requests["status"].tolist() == ["finished", "rejected"]
    assert record.events["events"] < 50
