"""Splitwise as pure decisions: who is picked, who is lent, who goes home, what a machine runs."""

from collections.abc import Sequence
from typing import Any

import pytest
from policy_views import chunks, decode, goes_on, ids, ready, view_of, wait
from pydantic import ValidationError

from policies.parts.pools import MIXED, PROMPT, TOKEN, Pools
from policies.splitwise import Splitwise, SplitwiseConfig
from sim.types import Cluster, ClusterInfo, Decode, N, Request, Router, View
from sim.types.request import BRIDGED

PD = ("prefill", "decode")
PPTT = ("prefill", "prefill", "decode", "decode")


class Never(Router):
    """Splitwise asks no router."""

    def pick(self, request: Request, instances: Sequence[View]) -> View:
        raise AssertionError


def splitwise(**config: Any) -> Splitwise:
    return Splitwise(SplitwiseConfig(**config))


class Machines:
    """A cluster of bare views of 10 blocks of 4 tokens, and the policy's books."""

    def __init__(self, roles: Sequence[str], blocks: int = 10, **config: Any) -> None:
        self.policy = splitwise(**config)
        self.views = [view_of(self.policy, blocks, id, role) for id, role in enumerate(roles)]
        self.cluster = Cluster(self.views, Never(), Never())
        self.requests: list[Request] = []

    @property
    def books(self) -> Pools:
        assert self.policy._pools is not None
        return self.policy._pools

    def arrive(self, tokens: int, predicted: int = 0, queue: bool = False) -> tuple[N, N]:
        """Let a request arrive; return its prompt machine and its token machine."""
        request = Request(len(self.requests), 0, 0.0, tokens)
        request.predicted_output_len = predicted
        self.requests.append(request)
        prompt = self.policy.route(request, self.cluster)
        request.home = self.views[prompt]
        if queue:
            self.views[prompt].num_waiting += 1
        return prompt, self.books.placements[request.id].token.view.id

    def prefilled(self, id: int) -> N:
        """The prompt of a request is done; return where it decodes."""
        request = self.requests[id]
        request.prefilled = request.input_len
        return self.policy.route(request, self.cluster)

    def leave(self, id: int) -> None:
        self.policy.on_leave(self.requests[id])

    def pools(self) -> list[str]:
        return [m.pool for m in self.books.machines]

    def check_empty(self) -> None:
        assert not self.books.placements
        for m in self.books.machines:
            assert (m.pending_tokens, m.reserved_blocks) == (0, 0)
            assert (m.prompts, m.outgoing, m.decodes, m.incoming) == (0, 0, 0, 0)
            assert m.pool == m.home


# -- picking both machines --------------------------------------------------------------------


def test_shortest_queue_in_tokens_and_least_memory():
    cluster = Machines(PPTT)
    # (30 tokens + 1) take 8 blocks, 21 take 6, 11 take 3.
    assert cluster.arrive(30) == (0, 2)  # all are equal: the first
    assert cluster.arrive(20) == (1, 3)  # 30 pending tokens against 0; 8 blocks against 0
    assert cluster.arrive(10) == (1, 3)  # 30 against 20; 8 blocks against 6
    assert cluster.arrive(3) == (0, 2)  # 30 against 30: the first; 8 against 9
    assert [m.pending_tokens for m in cluster.books.machines] == [33, 30, 2, 2]
    assert [m.reserved_blocks for m in cluster.books.machines] == [8 + 1, 5 + 3, 8 + 1, 6 + 3]


def test_a_prompt_that_is_done_counts_no_more():
    cluster = Machines(PPTT)
    cluster.arrive(30)
    cluster.arrive(20)
    assert cluster.prefilled(0) == 2
    assert [m.pending_tokens for m in cluster.books.machines] == [0, 20, 1, 1]
    assert cluster.arrive(5) == (0, 3)  # 0 against 20; 8 blocks against 6
    cluster.leave(0)
    assert [m.pending_tokens for m in cluster.books.machines] == [5, 20, 0, 2]


def test_memory_is_reserved_for_the_predicted_output():
    cluster = Machines(("prefill", "decode", "decode"))
    assert cluster.arrive(8, predicted=20)[1] == 1  # 28 tokens: 7 blocks
    assert cluster.arrive(16, predicted=4)[1] == 2  # 20 tokens: 5 blocks
    assert cluster.arrive(8, predicted=4)[1] == 2
    assert [m.reserved_blocks for m in cluster.books.machines][1:] == [7, 8]


def test_kv_that_has_not_left_counts_as_memory():
    cluster = Machines(("prefill", "decode", "decode"))
    cluster.views[1].held_blocks = 1  # a prompt run there, not yet pulled
    assert cluster.arrive(4) == (0, 2)


# -- pool moves -------------------------------------------------------------------------------


def test_a_token_machine_is_lent_to_prompts_and_goes_home():
    cluster = Machines(("prefill", "decode", "decode"), blocks=100, max_pending_tokens=50)
    assert cluster.arrive(24) == (0, 1)  # runs
    assert cluster.arrive(20, queue=True) == (0, 2)  # waits; 44 tokens are pending
    assert cluster.pools() == [PROMPT, TOKEN, TOKEN]
    # 44 + 7 > 50 and something waits: the queue is long. Both token machines have one pending
    # token, the first is lent; memory: 7 blocks against 6.
    assert cluster.arrive(7) == (1, 2)
    assert cluster.pools() == [PROMPT, MIXED, TOKEN]
    # 44 + 6 is not long. Decodes: only machine 2 is in the token pool.
    assert cluster.arrive(6) == (0, 2)
    # Long again: the mixed pool comes before another loan.
    assert cluster.arrive(1) == (1, 2)
    assert cluster.prefilled(2) == 2
    assert cluster.pools() == [PROMPT, MIXED, TOKEN]
    assert cluster.prefilled(4) == 2  # its last prompt
    assert cluster.pools() == [PROMPT, TOKEN, TOKEN]


def test_a_prompt_machine_is_lent_to_decodes_and_goes_home():
    cluster = Machines(("prefill", "prefill", "decode"))
    assert cluster.arrive(30) == (0, 2)  # 8 of 10 blocks
    cluster.views[1].held_blocks = 9
    # 8 + 2 blocks would fill the token machine. Memory: 8 blocks against 9, so 0 is lent.
    assert cluster.arrive(5) == (1, 0)
    assert cluster.pools() == [MIXED, PROMPT, TOKEN]
    # The mixed machine is the next choice for decodes: 8 + 2 + 2 blocks would fill it as well.
    assert cluster.arrive(5) == (1, 1)
    assert cluster.pools() == [MIXED, MIXED, TOKEN]
    # No prompt machine at home any more: fewest pending tokens in the mixed pool, 31 against 11.
    assert cluster.arrive(1)[0] == 1
    cluster.prefilled(1)
    cluster.leave(1)
    assert cluster.pools() == [PROMPT, MIXED, TOKEN]
    for id in (0, 2, 3):
        cluster.leave(id)
    cluster.check_empty()


def test_both_kinds_are_lent_at_once():
    cluster = Machines(PD, max_pending_tokens=10)
    assert cluster.arrive(30) == (0, 1)
    cluster.views[0].num_waiting = 1
    assert cluster.arrive(9) == (1, 1)  # a circle 0 -> 1 -> 0 is not allowed: stays on 1
    assert cluster.pools() == [PROMPT, MIXED]


def test_one_machine_runs_both_when_nothing_else_is_left():
    cluster = Machines(("mixed", "mixed"), max_pending_tokens=10)
    assert cluster.arrive(30, queue=True) == (0, 0)
    assert cluster.arrive(20, queue=True) == (1, 1)
    # Both queues are long, both memories would fill up: fewest pending tokens, 31 against 21.
    assert cluster.arrive(16) == (1, 1)
    assert cluster.pools() == [MIXED, MIXED]


@pytest.mark.parametrize(("tokens", "waits", "prompt"), [(10, 1, 0), (11, 1, 1), (99, 0, 0)])
def test_when_a_prompt_queue_is_long(tokens: int, waits: int, prompt: int):
    cluster = Machines(PD, blocks=1000, max_pending_tokens=40)
    assert cluster.arrive(30) == (0, 1)
    cluster.views[0].num_waiting = waits
    assert cluster.arrive(tokens)[0] == prompt


@pytest.mark.parametrize(("tokens", "token"), [(7, 1), (8, 0)])
def test_when_memory_is_full(tokens: int, token: int):
    cluster = Machines(PD)
    assert cluster.arrive(27) == (0, 1)  # 28 tokens: 7 blocks
    assert cluster.arrive(tokens)[1] == token  # 7 + 2 < 10; 7 + 3 is not


@pytest.mark.parametrize(("rule", "after"), [("no-foreign-work", TOKEN), ("idle", MIXED)])
def test_when_a_lent_machine_goes_home(rule: str, after: str):
    cluster = Machines(PD, max_pending_tokens=10, return_home=rule)
    cluster.arrive(30)
    cluster.views[0].num_waiting = 1
    assert cluster.arrive(4) == (1, 1)
    assert cluster.prefilled(1) == 1
    assert cluster.pools()[1] == after  # its own kind of work goes on
    cluster.leave(1)
    assert cluster.pools()[1] == after  # request 0 is still to decode there
    cluster.leave(0)
    cluster.check_empty()


def test_an_unused_loan_does_not_move_a_machine():
    cluster = Machines(PD, max_pending_tokens=10)
    cluster.arrive(35)  # the token machine is full but for a block
    cluster.views[0].num_waiting = 1
    # Prompts: 1 is lent. Decodes: 0 would be, but it hands over to 1: the request stays on 1.
    assert cluster.arrive(8) == (1, 1)
    assert cluster.pools() == [PROMPT, MIXED]


# -- the books --------------------------------------------------------------------------------


def test_a_request_that_leaves_early_is_struck_off():
    cluster = Machines(PPTT)
    for tokens in (30, 20, 10):
        cluster.arrive(tokens)
    cluster.prefilled(1)
    for id in (2, 0, 1):
        cluster.leave(id)
    cluster.check_empty()
    cluster.leave(1)  # twice, or unknown: nothing happens
    cluster.check_empty()


def test_a_recompute_stays_where_it_decodes():
    cluster = Machines(PD)
    cluster.arrive(8)
    assert cluster.prefilled(0) == 1
    pending = [m.pending_tokens for m in cluster.books.machines]
    assert cluster.prefilled(0) == 1
    assert [m.pending_tokens for m in cluster.books.machines] == pending == [0, 1]


def test_a_request_it_has_not_routed_stays():
    cluster = Machines(("mixed",))  # the engine asks nothing where there is no choice
    request = Request(0, 0, 0.0, 5)
    request.home = cluster.views[0]
    request.prefilled = 5
    assert cluster.policy.route(request, cluster.cluster) == 0
    cluster.policy.on_leave(request)


def test_another_run_starts_with_empty_books():
    cluster = Machines(PPTT)
    cluster.arrive(30)
    again = Cluster(cluster.views, Never(), Never())
    request = Request(0, 0, 0.0, 30)
    assert cluster.policy.route(request, again) == 0
    assert [m.pending_tokens for m in cluster.books.machines] == [30, 0, 1, 0]


def test_leaving_before_any_arrival():
    splitwise().on_leave(Request(0, 0, 0.0, 5))


# -- what a machine runs ----------------------------------------------------------------------


def test_whole_prompts_beside_all_decodes():
    policy = splitwise(max_num_batched_tokens=20)
    view = view_of(policy)
    decode(view, 0, 7)
    decode(view, 1, 7)
    wait(view, 2, 10)
    wait(view, 3, 8)
    wait(view, 4, 1)
    plan = policy.plan(view)
    assert chunks(plan) == [(2, 10), (3, 8)]  # 2 + 10 + 8 = 20
    assert plan.decode


def test_one_prompt_may_exceed_the_limit():
    policy = splitwise(max_num_batched_tokens=20)
    view = view_of(policy)
    wait(view, 0, 21)
    wait(view, 1, 1)
    plan = policy.plan(view)
    assert chunks(plan) == [(0, 21)]
    assert not plan.decode


def test_transferred_requests_join_first():
    policy = splitwise(max_num_seqs=3)
    view = view_of(policy)
    decode(view, 0, 7)
    wait(view, 1, 5)
    for id in (2, 3, 4):
        ready(view, id, 5)
    plan = policy.plan(view)
    assert isinstance(plan, Decode)
    assert ids(plan.admit) == [2, 3]


def test_seats():
    policy = splitwise(max_num_seqs=2)
    view = view_of(policy)
    decode(view, 0, 7)
    wait(view, 1, 5)
    wait(view, 2, 5)
    assert chunks(policy.plan(view)) == [(1, 5)]
    decode(view, 3, 7)
    ready(view, 4, 5)
    assert goes_on(policy.plan(view))


def test_prompts_leave_room_for_the_next_to_be_pulled():
    policy = splitwise()
    for length, admitted in [(12, True), (13, False)]:
        view = view_of(policy, blocks=8)
        decode(view, 0, 5)
        arriving = Request(1, 0, 0.0, 8)
        arriving.state = BRIDGED
        arriving.prefilled = 8  # 3 blocks with the next token; 6 are free
        view.bridge[1] = arriving
        wait(view, 2, length)
        plan = policy.plan(view)
        assert chunks(plan) == [(2, 12)] if admitted else goes_on(plan)


def test_it_pulls_what_fits_with_a_token():
    policy = splitwise()
    request = Request(1, 0, 0.0, 8)
    request.prefilled = 8
    for cached, accepted in [(7, True), (8, False)]:  # at 8 tokens the batch takes a block
        view = view_of(policy, blocks=5)
        decode(view, 0, cached)
        assert policy.can_accept(view, request) is accepted


@pytest.mark.parametrize(("held", "room"), [(0, 10), (1, 7)])
def test_the_watermark_holds_unless_the_memory_is_empty(held: int, room: int):
    policy = splitwise(watermark=0.2)  # 2 of 10 blocks
    for blocks, fits in [(room, True), (room + 1, False)]:
        view = view_of(policy, blocks=10)
        view.free_blocks -= held
        request = wait(view, 0, 4 * blocks)
        assert (policy.plan(view) is not None) is fits
        request.prefilled = 4 * blocks - 1
        assert policy.can_accept(view, request) is fits


def test_nothing_to_do():
    policy = splitwise()
    view = view_of(policy)
    assert policy.plan(view) is None
    decode(view, 0, 5)
    assert goes_on(policy.plan(view))


# -- layout and config ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "tp", "share", "expected"),
    [
        (8, 2, 0.5, [("prefill", 2), ("decode", 2)]),
        (10, 2, 0.5, [("prefill", 2), ("decode", 3)]),
        (4, 1, 0.9, [("prefill", 3), ("decode", 1)]),
        (4, 1, 0.01, [("prefill", 1), ("decode", 3)]),
        (3, 2, 0.5, [("mixed", 1)]),
    ],
)
def test_layout(gpus: int, tp: int, share: float, expected: list[tuple[str, int]]):
    pools = splitwise(prompt_share=share).pools(ClusterInfo(gpus, tp))
    assert [(p.role, p.instances) for p in pools] == expected
    assert {p.tp for p in pools} == {tp}


@pytest.mark.parametrize(
    "config", [{"max_pending_tokens": 0}, {"prompt_share": 1.0}, {"return_home": "never"}]
)
def test_bad_configs(config: dict[str, Any]):
    with pytest.raises(ValidationError):
        SplitwiseConfig(**config)
