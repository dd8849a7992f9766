"""CoSine: who drafts, how much, who is admitted; acceptance and prices of its pool."""

import pytest
from policy_views import decode, goes_on, ids, view_of, wait

from policies.cosine import Cosine, CosineConfig
from policies.parts.drafter_routing import Cooperation
from sim.core.drafter_pool import Cooperative, DrafterPool
from sim.core.drafting import ByRules
from sim.costs.simple import AffineCost
from sim.costs.speculative import PooledDrafters, SpeculativeCost
from sim.types import BadInput, OneDrafter


def cosine(**config):
    return Cosine(CosineConfig(**config))


def rules(**config):
    return cosine(**config).drafters


# -- admission -------------------------------------------------------------------------------------


def test_prompts_come_first_while_seats_tokens_and_blocks_last():
    policy = cosine(max_num_seqs=4, max_num_batched_tokens=20)
    view = view_of(policy)
    decode(view, 0, 7)
    for id, tokens in ((1, 8), (2, 8), (3, 8)):
        wait(view, id, tokens)
    assert ids(policy.plan(view).requests) == [1, 2]
    few = view_of(policy, blocks=7)  # of 4 tokens; the decode holds 2 and takes a third
    decode(few, 0, 8)
    wait(few, 1, 8)  # three with the token of the first round
    wait(few, 2, 8)
    assert ids(policy.plan(few).requests) == [1]


def test_a_full_house_goes_on():
    policy = cosine(max_num_seqs=1)
    view = view_of(policy)
    assert policy.plan(view) is None
    decode(view, 0, 7)
    wait(view, 1, 8)
    assert goes_on(policy.plan(view))


def test_a_prompt_that_fills_the_memory_runs_alone():
    policy = cosine(max_num_batched_tokens=5)
    view = view_of(policy, blocks=3)
    wait(view, 0, 12)
    assert ids(policy.plan(view).requests) == [0]


def test_everybody_is_the_best_set():
    """-(T_draft + T_verify)/|S| + w * sum of K rises with |S|: both times have a constant part."""
    drafters = PooledDrafters(16, rules(), 0.003, 0.00005, 0.001)
    cost = SpeculativeCost(AffineCost(decode_base_s=0.02, decode_seq_s=1e-4), drafters, apart=True)

    def objective(batch, drafts):
        return -sum(cost.phases(batch, drafts, 0)) / 1e15 / batch + 0.1 * drafts * batch

    for drafts in (1, 4, 8):
        found = [objective(batch, drafts) for batch in range(1, 17)]
        assert found == sorted(found)


# -- who drafts ------------------------------------------------------------------------------------


def test_first_then_best_then_explored():
    choose = rules(drafters_per_request=2).choose
    scores = [0.5, 0.9, 0.2, 0.5, 0.7]
    assert choose(scores, [], [3, 0, 1, 2, 4], 0, 2) == [3, 0]
    assert choose(scores, [3, 0, 4], [1, 2], 3, 2) == [4, 3]  # the best; of equals the older
    assert choose(scores, [3, 0, 4], [1, 2], 2, 2) == [4, 3]  # theta is 2: two are enough
    assert choose(scores, [3, 0, 4], [1, 2], 1, 2) == [4, 1]  # one is not: the next has a go
    assert choose(scores, [3, 0, 4, 1, 2], [], 1, 2) == [1, 4]
    assert choose(scores, [3], [0, 1, 2, 4], 5, 2) == [3, 0]  # too few tried
    assert choose(scores, [3, 4], [1], 1, 1) == [1]


def test_without_routing_the_first_stay():
    choose = rules(routing="fixed").choose
    assert choose([0.1, 0.9, 0.5], [], [2, 0, 1], 0, 2) == [2, 0]
    assert choose([0.1, 0.9, 0.5], [2, 0], [1], 1, 2) == [2, 0]


def test_scores_move_to_the_harmonic_mean():
    score = rules(smoothing=0.3).score
    assert score(0.5, 0.8, 0.4) == pytest.approx(0.7 * 0.5 + 0.3 * 2 * 0.32 / 1.2)
    assert score(0.5, 0.0, 0.0) == pytest.approx(0.35)


def test_width():
    assert [rules().width(batch, 16) for batch in (1, 16)] == [2, 2]
    assert rules(drafters_per_request=8).width(1, 5) == 5
    idle = rules(drafters_per_request=0, widest=4)
    assert [idle.width(batch, 16) for batch in (1, 4, 5, 8, 16, 64)] == [4, 4, 3, 2, 1, 1]


def test_one_drafter_for_policies_without_rules():
    one = OneDrafter()
    assert one.width(9, 16) == 1
    assert one.choose([0.5] * 3, [], [2, 0, 1], 0, 1) == [2]
    assert one.choose([0.5] * 3, [2], [0, 1], 1, 1) == [2]
    assert one.score(0.5, 1.0, 1.0) == 0.5


# -- how much --------------------------------------------------------------------------------------


def test_ladder():
    ladder = rules(adapt="ladder")
    assert [ladder.next_drafts(4, idle, queued) for idle, queued in
            ((0.11, 0.0), (0.1, 1.0), (0.0, 1.1))] == [5, 4, 3]  # fmt: skip
    assert rules().next_drafts(4, 0.9, 9.0) == 4


def test_candidates_cut_k():
    assert [rules().most_drafts(batch) for batch in (1, 8, 16, 17, 99)] == [64, 8, 4, 3, 1]
    assert rules(candidates=0).most_drafts(3) == 0


def control(adapt, k_max=8, first=4, verify_s=0.02):
    chosen = rules(adapt=adapt)
    drafters = PooledDrafters(16, chosen, 0.003, 0.0, 0.001)  # 4 ms a token
    target = AffineCost(decode_base_s=verify_s)
    cost = SpeculativeCost(target, drafters, apart=True, network_s=0.001)
    return ByRules(cost, chosen, k_max, first)


def settled(found, batch=4):
    for _ in range(20):
        found.note(batch, found.choose(batch, 0), 0)
    return found.choose(batch, 0)


def test_k_goes_where_the_rules_lead():
    assert control("ladder").choose(4, 0) == 4  # 20 ms of 21, 16 ms beside it
    assert settled(control("ladder", verify_s=0.08)) == 1  # drafts wait: shorter, and shorter
    assert settled(control("ladder", verify_s=0.012)) == 8  # the verifier waits: longer still
    assert settled(control("none", first=8)) == 8


# -- the pool --------------------------------------------------------------------------------------


def lengths(pool, chosen, requests=250, rounds=60, batch=1, seed=3):
    found = Cooperative(pool, chosen, 6, seed)
    total = 0.0
    for request in range(requests):
        found.joins(request, batch)
        total += 1 + float(found.accepted(request, rounds).mean())
    return total / requests


ALIKE = {"domains": 1, "worst_rate": 0.6, "best_rate": 0.6}


def test_one_drafter_that_fits_is_geometric():
    expected = (1 - 0.6**7) / 0.4
    assert lengths(DrafterPool(1, **ALIKE), OneDrafter()) == pytest.approx(expected, rel=0.02)


def test_fusion_adds_to_the_rate():
    pool = DrafterPool(4, **ALIKE)
    for width, rate in ((1, 0.6), (2, 0.64), (4, 0.72)):
        found = lengths(pool, rules(drafters_per_request=width))
        assert found == pytest.approx((1 - rate**7) / (1 - rate), rel=0.02)


def test_routing_finds_the_drafter_of_the_domain():
    pool = DrafterPool(10, domains=5, worst_rate=0.6, best_rate=0.6, off_domain=0.5)
    alone = {"drafters_per_request": 1, "explore_below": 2.0}
    fixed = lengths(pool, rules(routing="fixed", **alone))
    found = lengths(pool, rules(**alone))
    best = (1 - 0.6**7) / 0.4
    assert fixed == pytest.approx(0.2 * best + 0.8 * (1 - 0.3**7) / 0.7, rel=0.04)
    assert fixed + 0.35 < found < best


def test_any_order_gives_the_same_and_width_is_settled_when_joining():
    pool = DrafterPool(16)
    idle = rules(drafters_per_request=0)
    one, two = Cooperative(pool, idle, 5, 1), Cooperative(pool, idle, 5, 1)
    for request in (0, 1, 5000):
        one.joins(request, 1)
        two.joins(request, 1)
        two.joins(request, 99)  # joins again, after a preemption
    first = {request: one.accepted(request, 200).tolist() for request in (0, 1, 5000)}
    for request in (5000, 0, 1):
        assert two.accepted(request, 20).tolist() == first[request][:20]
        assert two.accepted(request, 200).tolist() == first[request]
    crowded = Cooperative(pool, idle, 5, 1)
    crowded.joins(0, 99)
    assert crowded.accepted(0, 200).tolist() != first[0]


def test_forgotten_requests_are_drawn_again(monkeypatch):
    monkeypatch.setattr("sim.core.drafter_pool.REQUESTS_KEPT", 2)
    found = Cooperative(DrafterPool(4), rules(), 5, 1)
    first = [found.accepted(request, 30).tolist() for request in range(5)]
    assert [found.accepted(request, 30).tolist() for request in range(5)] == first


def test_bad_pools():
    for keys in ({"drafters": 0}, {"drafters": 2, "best_rate": 1.5}, {"drafters": 2, "domains": 0}):
        with pytest.raises(BadInput, match="expected at least one of each and numbers from 0 to 1"):
            DrafterPool(**keys)
    with pytest.raises(BadInput, match="k_max 0"):
        Cooperative(DrafterPool(2), rules(), 0, 1)


def test_a_round_of_the_pool_by_hand():
    chosen = rules(drafters_per_request=2)
    drafters = PooledDrafters(4, chosen, 0.003, 0.00005, 0.001)
    target = AffineCost(decode_base_s=0.02, decode_seq_s=0.001, decode_kv_s=1e-5)
    # 6 requests x 2 on 4 drafters: 3 each; a tree of 2 x 3 tokens and the root: 42 rows
    draft, verify = 3 * (3 + 1 + 0.05 * 3), 20 + 42 + 0.01 * 50
    for overlap, expected in ((True, verify + 1), (False, verify + draft + 1)):
        cost = SpeculativeCost(target, drafters, True, 0.001, overlap=overlap)
        assert cost.verify(6, 3).at(50) / 1e12 == pytest.approx(expected)
        assert cost.verify_step(0, 0, 0, 0, 6, 50, 3) == cost.verify(6, 3).at(50)
    assert [part / 1e12 for part in cost.phases(6, 3, 50)] == pytest.approx([verify, draft])


def test_cooperation_is_what_the_config_says():
    assert isinstance(rules(), Cooperation)
    assert rules(adapt="ladder").adapts
    assert not rules().adapts
