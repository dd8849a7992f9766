"""CoSine: who drafts, how much, who is admitted; acceptance and prices of its pool."""

import numpy as np
import pytest
from policy_views import decode, goes_on, ids, view_of, wait

from policies.cosine import Cosine, CosineConfig
from policies.parts.drafter_routing import Cooperation
from sim.core.drafter_pool import (
    MOST_FUSED,
    OUTCOMES,
    ROUNDS_SUMMED,
    TEXTS,
    Cooperative,
    DrafterPool,
    Texts,
    merits,
)
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


def naive(chosen, pool, texts, row, width, logs, outcomes, k_max):
    """Return the lengths and scores of one text, drafter by drafter and round by round."""
    drafters, domain = pool.drafters, texts.domain[row]
    knows = texts.knows.reshape(drafters, -1)[:, row]
    shows = merits(pool, chosen, k_max)[domain]
    places = (1 << (drafters - 1).bit_length()) - 1
    scores, last, found = np.full(drafters, 0.5, np.float32), 0, []
    tried, untried = [], list(range(drafters))
    for log, outcome in zip(logs, outcomes, strict=True):
        # of equals the one tried first; the last bits of a score do not count
        ranked = sorted(tried, key=lambda at: scores[at].view(np.int32) & ~places, reverse=True)
        explores = tried and untried and last < chosen.explore_below
        best = ranked[: width - 1 if explores else width] if chosen.routes else tried[:width]
        drafting = [*best, *untried[: width - len(best)]]
        rates = [pool.rates[domain, knows[at]] for at in drafting]
        rate = min(max(rates) + pool.fusion_gain * min(width - 1, MOST_FUSED), 0.99)
        length = 0
        while length < k_max and log <= (length + 1) * np.log(rate):
            length += 1
        for at, which in zip(drafting, outcome, strict=True):
            if chosen.routes:
                merit = shows[knows[at], length, which]
                scores[at] += (merit - scores[at]) * np.float32(chosen.smoothing)
            if at in untried:
                untried.remove(at)
                tried.append(at)
        last = length + 1
        found.append(length)
    return found, scores


@pytest.mark.parametrize(
    ("drafters", "width", "config"),
    [
        (16, 2, {}),
        (16, 1, {"explore_below": 3.0, "smoothing": 1.0}),
        (5, 4, {"explore_below": 99.0}),
        (3, 3, {"explore_below": 0.0, "smoothing": 0.9}),
        (1, 1, {}),
        (6, 2, {"routing": "fixed"}),
    ],
)
def test_side_by_side_is_one_by_one(drafters, width, config):
    """The best by score, of equals the first; after a poor round the next untried one."""
    chosen, pool, k_max, rounds = rules(**config), DrafterPool(drafters, domains=3), 4, 60
    texts = Texts(pool, chosen, k_max, width, seed=1)
    random = np.random.default_rng(2)
    logs = np.log(random.random((rounds, TEXTS), dtype=np.float32))
    outcomes = random.integers(OUTCOMES, size=(rounds, width, TEXTS), dtype=np.uint16)
    found = np.array([texts.round(*each) for each in zip(logs, outcomes, strict=True)])
    for row in range(0, TEXTS, 128):
        given = logs[:, row], outcomes[:, :, row]
        lengths, scores = naive(chosen, pool, texts, row, width, *given, k_max)
        assert found[:, row].tolist() == lengths
        assert texts.scores.reshape(drafters, -1)[:, row].tolist() == scores.tolist()


def test_merit_is_the_harmonic_mean():
    confidence, agreement = np.array([[0.8], [0.0]]), np.array([0.4, 0.0])
    found = rules().merit(confidence, agreement)
    assert found == pytest.approx(np.array([[2 * 0.32 / 1.2, 0.0], [0.0, 0.0]]))


class Sure(OneDrafter):
    """Goes by confidence alone."""

    def merit(self, confidence, agreement):
        return confidence + 0 * agreement


def test_outcomes_of_a_round():
    """Agreement is binomial, confidence normal about the rate, and they do not depend."""
    pool = DrafterPool(1, domains=1, worst_rate=0.5, best_rate=0.6, off_domain=0.5)
    agreement, confidence = (merits(pool, one, 4)[0, 1] for one in (OneDrafter(), Sure()))
    for length in range(5):
        emitted = length + 1
        assert agreement[length].mean() == pytest.approx(0.6, abs=0.001)
        assert agreement[length].var() == pytest.approx(0.24 / emitted, rel=0.01)
        assert confidence[length].mean() == pytest.approx(0.6, abs=0.001)
        assert confidence[length].std() == pytest.approx(0.1, rel=0.01)
        assert abs(np.corrcoef(agreement[length], confidence[length])[0, 1]) < 0.02
    assert merits(pool, OneDrafter(), 4)[0, 0, 4].mean() == pytest.approx(0.3, abs=0.001)


def test_width():
    assert [rules().width(batch, 16) for batch in (1, 16)] == [2, 2]
    assert rules(drafters_per_request=8).width(1, 5) == 5
    idle = rules(drafters_per_request=0, widest=4)
    assert [idle.width(batch, 16) for batch in (1, 4, 5, 8, 16, 64)] == [4, 4, 3, 2, 1, 1]


def test_one_drafter_for_policies_without_rules():
    one = OneDrafter()
    assert one.width(9, 16) == 1
    assert not one.routes


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


def test_texts_come_again():
    found = Cooperative(DrafterPool(4), rules(), 5, 1)
    numbers = [found.accepted(request, 90).tolist() for request in (0, 1, TEXTS)]
    assert numbers[0] == numbers[2] != numbers[1]


def test_running_sums_are_those_of_the_numbers():
    found = Cooperative(DrafterPool(4), rules(), 5, 1)
    for request, drafts, rounds in (
        (0, 2, 3),
        (130, 5, 70),
        (0, 2, 200),
        (1, 4, ROUNDS_SUMMED + 1),
    ):
        expected = 1 + np.minimum(found.accepted(request, rounds), drafts).astype(int)
        tokens, total = found.emitted(request, drafts, rounds)
        assert tokens[:rounds].tolist() == expected.tolist()
        assert total[:rounds].tolist() == expected.cumsum().tolist()


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
