"""Failures by hand: an instance is killed while it prefills, decodes, moves KV, or does nothing.

Times are ms and costs those of `hand.PRICES`, but for the transfers at the end: there every step
lasts 1 s and a token of KV is 10 MB, on links of 10 GB/s.
"""

import numpy as np
import pytest
from hand import Killed, Row, check_empty, policy, replay

from policies.distserve import Distserve, DistserveConfig
from sim.core.simulation import Simulation
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace


def test_killed_in_a_prefill():
    run = replay([(0, 6, 3), (20, 2, 1)], policy("continuous"), outages=Killed([(10, 50)]))
    #  0  A's prefill would last until 16. It is killed at 10: 10 ms are lost, and A is put back.
    # 20  B arrives; nothing is up, so A and B are held.
    # 50  Repaired: A in front, B behind, 8 prompt tokens in one step         10 + 8        = 18
    # 68  Both have a token, B is done.                                       20 + 2 + 0.6  = 22.6
    # 90.6                                                                    20 + 2 + 0.7  = 22.7
    run.check(
        Row(arrival=0, start=50, first=68, finish=113.3, tokens=3, retries=1),
        Row(arrival=20, start=50, first=68, finish=68, tokens=1),
    )
    run.check_steps(
        (50, 18, "prefill", 8, 0, 0), (68, 22.6, "decode", 0, 1, 6), (90.6, 22.7, "decode", 0, 1, 7)
    )
    run.check_gaps(22.6, 22.7)
    run.check_outages((0, 10, 50, 10, 1))
    assert run.counters["failures"] == 1


def test_killed_in_a_decode_span():
    run = replay([(0, 4, 5)], policy("continuous"), instances=2, outages=Killed([(70, 1000)]))
    #  0    Instance 0 prefills A's 4 tokens                                  10 + 4        = 14
    # 14    Token 1; a span of 4 steps begins.                                20 + 2 + 0.4  = 22.4
    # 36.4  Token 2                                                           20 + 2 + 0.5  = 22.5
    # 58.9  Token 3; the next step would last until 81.5.
    # 70    Killed: 11.1 ms are lost. Instance 1 prefills 4 + 3 tokens        10 + 7        = 17
    # 87    Token 4, 28.1 ms after token 3.                                   20 + 2 + 0.7  = 22.7
    # 109.7 Token 5
    run.check(Row(arrival=0, start=0, first=14, finish=109.7, tokens=5, retries=1))
    run.check_steps(
        (0, 14, "prefill", 4, 0, 0),
        (14, 22.4, "decode", 0, 1, 4),
        (36.4, 22.5, "decode", 0, 1, 5),
        (70, 17, "prefill", 7, 0, 0),
        (87, 22.7, "decode", 0, 1, 7),
    )
    run.check_gaps(22.4, 22.5, 28.1, 22.7)
    # Requests are done at 109.7, before the repair.
    run.check_outages((0, 70, 109.7, 11.1, 1))
    assert run.fused.requests["prefill_instance"].tolist() == [0]
    assert run.fused.requests["decode_instance"].tolist() == [1]


def test_killed_at_a_step_end():
    run = replay([(0, 4, 5)], policy("continuous"), instances=2, outages=Killed([(58.9, 1000)]))
    # As before, but the step that ends at 58.9 is not over when the instance fails: token 3 and
    # 22.5 ms are lost. Instance 1 prefills 4 + 2 tokens in 16 ms: token 3 at 74.9, 38.5 after
    # token 2; then 22.6 and 22.7 ms.
    run.check(Row(arrival=0, start=0, first=14, finish=120.2, tokens=5, retries=1))
    run.check_gaps(22.4, 38.5, 22.6, 22.7)
    run.check_outages((0, 58.9, 120.2, 22.5, 1))


def test_an_idle_instance_is_killed():
    run = replay(
        [(10, 4, 1), (20, 2, 1), (100, 1, 1)],
        policy("continuous"),
        instances=2,
        outages=Killed([(5, 100)]),
    )
    # Turns go round the instances that are up. At 10 and 20 that is instance 1 alone: 10 to 24, and
    # 24 to 36. At 100 instance 0 is repaired before C arrives, and it is its turn: 100 to 111.
    run.check(
        Row(arrival=10, start=10, first=24, finish=24, tokens=1),
        Row(arrival=20, start=24, first=36, finish=36, tokens=1),
        Row(arrival=100, start=100, first=111, finish=111, tokens=1),
    )
    assert run.fused.requests["prefill_instance"].tolist() == [1, 1, 0]
    run.check_outages((0, 5, 100, 0, 0))


def test_a_static_batch_is_killed():
    def batches(release: str):
        return replay(
            [(0, 2, 3), (0, 4, 1)],
            policy("static", max_batch_size=2, fill_timeout_s=0.0, release=release),
            outages=Killed([(50, 60)]),
        )

    #  0    A and B, padded to 4 tokens                                       10 + 8        = 18
    # 18    Both have a token, B is done.                                     20 + 4 + 0.8  = 24.8
    # 42.8  A has two. The last step would take 25 ms.
    # 50    Killed: 7.2 ms are lost, and A's tokens with them.
    # each: B left at 18; A runs alone at 60: 12, then 22.2 and 22.3.
    run = batches("each")
    run.check(
        Row(arrival=0, start=60, first=72, finish=116.5, tokens=3, retries=1),
        Row(arrival=0, start=0, first=18, finish=18, tokens=1),
    )
    run.check_steps(
        (0, 18, "static_prefill", 6, 0, 0),
        (18, 24.8, "static_decode", 0, 2, 8),
        (60, 12, "static_prefill", 2, 0, 0),
        (72, 22.2, "static_decode", 0, 1, 2),
        (94.2, 22.3, "static_decode", 0, 1, 3),
    )
    run.check_gaps(22.2, 22.3)
    run.check_outages((0, 50, 60, 7.2, 1))
    # together: nobody has left; at 60 the batch begins again, 18, 24.8 and 25.
    run = batches("together")
    run.check(
        Row(arrival=0, start=60, first=78, finish=127.8, tokens=3, retries=1),
        Row(arrival=0, start=60, first=78, finish=127.8, tokens=1, retries=1),
    )
    run.check_gaps(24.8, 25)
    run.check_outages((0, 50, 60, 7.2, 2))


# -- between two pools, in seconds ----------------------------------------------------------------

STEP = AffineCost(prefill_base_s=1.0, decode_base_s=1.0)
ONE = Trace(np.array([100]), np.array([3]), np.array([0.0]))


def split(trace, outages, roles=("prefill", "decode"), **options):
    """Run both modes; return the record. `outages` in seconds."""
    specs = [InstanceSpec(STEP, 1000, 1, role=role, kv_token_bytes=10_000_000) for role in roles]
    killed = Killed(*[[(1000 * at, 1000 * up) for at, up in own] for own in outages])
    records = []
    for fuse in (True, False):
        scheduler = Distserve(DistserveConfig(padded=False, ready_threshold=1.0))
        settings = Settings(fuse, link_bytes_per_s=10e9, outages=killed, **options)
        sim = Simulation(trace, scheduler, specs, settings)
        records.append(sim.run())
        check_empty(sim)
    for name, values in records[0].requests.items():
        np.testing.assert_array_equal(values, records[1].requests[name], err_msg=name)
    assert records[0].outages == records[1].outages
    return records[0]


def times(record, row=0):
    """Prefill end, transfer start and end, first token, finish."""
    names = ("prefill_end_s", "transfer_start_s", "transfer_end_s", "first_token_s", "finish_s")
    return pytest.approx([record.requests[name][row] for name in names], rel=0, abs=1e-12)


def test_the_target_of_a_transfer_is_killed():
    # Prefilled at 1, on the link until 1.1. At 1.05 the decode instance fails: the source's blocks
    # are free, and A prefills again with its token, 1.05 to 2.05: token 2. The decode instance is
    # up since 1.5: 101 tokens move until 2.151, token 3 comes at 3.151.
    record = split(ONE, [[], [(1.05, 1.5)]])
    assert times(record) == [1, 2.05, 2.151, 1, 3.151]
    assert record.requests["retries"].tolist() == [1]
    # Up only at 3: the KV is parked at the source from 2.05 on, and moves at 3.
    assert times(split(ONE, [[], [(1.05, 3)]])) == [1, 3, 3.101, 1, 4.101]


def test_the_source_of_a_transfer_is_killed():
    # At 1.05 the prefill instance fails, with the KV: A is held until 1.5, prefills until 2.5
    # (token 2), moves until 2.601, and has token 3 at 3.601. The blocks that the decode instance
    # had reserved are free meanwhile.
    assert times(split(ONE, [[(1.05, 1.5)], []])) == [1, 2.5, 2.601, 1, 3.601]


def test_a_decode_instance_is_killed_in_a_step():
    # A decodes from 1.1; the step until 2.1 is lost at 1.6. Prefill 1.6 to 2.6 (token 2), on the
    # link until 2.701, token 3 at 3.701. The transfer that counts is the first that was completed.
    record = split(ONE, [[], [(1.6, 1.7)]])
    assert times(record) == [1, 1, 1.1, 1, 3.701]
    assert record.gaps_s.tolist() == pytest.approx([1.101, 1.6], rel=0, abs=1e-12)


def test_a_decode_instance_that_sends_first_tokens_is_killed():
    # Transfer 1 to 1.1, token 1 at 2.1; the step until 3.1 is lost at 2.6. Prefill of 101 tokens
    # 2.6 to 3.6, whose token is left to the decode instance; transfer until 3.701, token 2 at
    # 4.701, 2.601 s after token 1, and token 3 at 5.701.
    record = split(ONE, [[], [(2.6, 2.7)]], first_token="decode")
    assert times(record) == [1, 1, 1.1, 2.1, 5.701]
    assert record.gaps_s.tolist() == pytest.approx([2.601], rel=0, abs=1e-12)
    # Killed at 1.6, before token 1: everything starts over. Prefill 1.6 to 2.6, transfer until 2.7,
    # token 1 at 3.7.
    assert times(split(ONE, [[], [(1.6, 1.7)]], first_token="decode")) == [2.6, 2.6, 2.7, 3.7, 5.7]


def test_a_cancelled_transfer_leaves_the_link_to_the_other():
    # A and B are prefilled in one batch until 1, for decode instances 1 and 2, over one link: half
    # of 1 GB each has moved at 1.1, when instance 1 fails. B's other half moves alone, in 0.05 s;
    # tokens 2 and 3 at 2.15 and 3.15. A prefills again 1.1 to 2.1 (101 tokens, token 2); only
    # instance 2 is up. It pulls A when its step ends, 2.15: 0.101 s on the link, there at 2.251,
    # joins at the step end 3.15: token 3 at 4.15.
    trace = Trace(np.array([100, 100]), np.array([3, 3]), np.array([0.0, 0.0]))
    record = split(
        trace,
        [[], [(1.1, 9)], []],
        ("prefill", "decode", "decode"),
        link_shared=True,
        decode_router="round-robin",
    )
    assert times(record) == [1, 2.15, 2.251, 1, 4.15]
    assert times(record, 1) == [1, 1, 1.15, 1, 3.15]
