"""UELLM as a pure decision: order, acceptance, caps, layouts. No SimPy."""

from typing import Any

import pytest
from pydantic import ValidationError

from policies.uellm import Uellm, UellmConfig
from sim.costs.simple import AffineCost
from sim.types import BadInput, ClusterInfo, Plan, Request, RunToCompletion, View

Row = tuple[float, int, float]
"""Arrival in seconds, predicted output length (0: none), SLO in seconds (-1: none)."""


def uellm(**config: Any) -> Uellm:
    return Uellm(UellmConfig(**config))


def view_of(policy: Uellm, *rows: Row) -> View:
    view = View(0, AffineCost(decode_base_s=0.02), 1000, waiting=policy.new_queue())
    view.now_s = 1000.0
    for id, (arrival_s, predicted, slo_s) in enumerate(rows):
        request = Request(id, 0, arrival_s, 10)
        request.predicted_output_len = predicted
        request.e2e_slo_s = slo_s
        view.waiting.push(request)
        view.num_waiting += 1
    return view


def batch(plan: Plan | None) -> list[int]:
    assert isinstance(plan, RunToCompletion)
    return [request.id for request in plan.requests]


def groups(policy: Uellm, *rows: Row) -> list[list[int]]:
    """All batches, one after another."""
    view, found = view_of(policy, *rows), []
    while view.num_waiting:
        plan = policy.plan(view)
        found.append(batch(plan))
        assert isinstance(plan, RunToCompletion)
        for request in plan.requests:
            view.waiting.remove(request)
            view.num_waiting -= 1
    return found


# -- order ----------------------------------------------------------------------------------------

FOUR: list[Row] = [
    (0.0, 300, 100.0),  # due 100, + 0.5 x 300 = 250
    (10.0, 100, 200.0),  # due 210, 260
    (20.0, 50, 100.0),  # due 120, 145
    (30.0, 400, 60.0),  # due  90, 290
]


@pytest.mark.parametrize(
    ("config", "order"),
    [
        ({}, [2, 0, 1, 3]),
        ({"token_weight_s": 0.0}, [3, 0, 2, 1]),
        ({"order": "slo"}, [2, 0, 1, 3]),  # 250, 250, 125, 260: ties by trace row
        ({"order": "slo", "token_weight_s": 0.0}, [3, 0, 2, 1]),
        ({"variant": "slo-dbs"}, [3, 0, 2, 1]),
        ({"variant": "odbs"}, [2, 1, 0, 3]),
        ({"variant": "s3", "s3_bin_tokens": 10_000}, [2, 1, 0, 3]),
        ({"variant": "fifo"}, [0, 1, 2, 3]),
    ],
)
def test_order(config: dict[str, Any], order: list[int]):
    policy = uellm(**config, threshold_tokens=10**9)
    assert groups(policy, *FOUR) == [order]


def test_no_slo_means_225_seconds_and_no_prediction_512_tokens():
    policy = uellm()
    view = view_of(policy, (5.0, 0, -1.0))
    request = next(iter(view.waiting))
    assert (policy.slo_s(request), policy.length(request)) == (225.0, 512)
    assert policy.key(request) == 5 + 225 + 0.5 * 512
    policy = uellm(default_e2e_slo_s=10.0, default_output_len=100, token_weight_s=1.0)
    assert policy.key(request) == 5 + 10 + 100


# -- the coded rule -------------------------------------------------------------------------------


def lengths(*values: int) -> list[Row]:
    """Requests at time 0 with the default SLO, so that the shortest come first."""
    return [(0.0, value, -1.0) for value in values]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        # 100: alone. 150: 50 x 2 x 1.2 = 120. 160: 10 x 3 x 1.2 = 36. 300: 140 x 4 x 1.2 = 672.
        # 900: 600 x 5 x 1.2 = 3600, or x 2 = 1440 as the second of a group.
        (3750, [[0, 1, 2, 3, 4]]),
        (3600, [[0, 1, 2, 3, 4]]),
        (3599, [[0, 1, 2, 3], [4]]),
        (672, [[0, 1, 2, 3], [4]]),
        (671, [[0, 1, 2], [3], [4]]),
        (120, [[0, 1, 2], [3], [4]]),
        # 150 with 160: 10 x 2 x 1.2 = 24; 300: 140 x 3 x 1.2 = 504
        (119, [[0], [1, 2], [3], [4]]),
        (0, [[0], [1], [2], [3], [4]]),
    ],
)
def test_coded(threshold: int, expected: list[list[int]]):
    policy = uellm(threshold_tokens=threshold)
    assert groups(policy, *lengths(100, 150, 160, 300, 900)) == expected


def test_ten_to_a_batch_as_in_the_logs():
    assert [len(g) for g in groups(uellm(), *lengths(*range(100, 125)))] == [10, 10, 5]


def test_a_shorter_one_is_always_accepted():
    # 400 is due first; the others are shorter, the difference is negative.
    rows = [(0.0, 400, 1.0), (300.0, 100, 1.0), (400.0, 50, 1.0)]
    assert groups(uellm(threshold_tokens=0), *rows) == [[0, 1, 2]]


def test_slo_dbs_looks_at_bounds():
    # 10 s, 20 s: 10 x 2 x 1.2 = 24; 60 s: 40 x 3 x 1.2 = 144.
    rows = [(0.0, 1, 10.0), (0.0, 2000, 20.0), (0.0, 1, 60.0)]
    assert groups(uellm(variant="slo-dbs"), *rows) == [[0, 1, 2]]
    assert groups(uellm(variant="slo-dbs", threshold_s=144.0), *rows) == [[0, 1, 2]]
    assert groups(uellm(variant="slo-dbs", threshold_s=143.0), *rows) == [[0, 1], [2]]
    assert groups(uellm(variant="slo-dbs", threshold_s=23.0), *rows) == [[0], [1], [2]]


def test_overhead():
    # 50 x 2 x L
    policy = uellm(threshold_tokens=150, overhead=1.5)
    assert groups(policy, *lengths(100, 150)) == [[0, 1]]
    assert groups(uellm(threshold_tokens=149, overhead=1.5), *lengths(100, 150)) == [[0], [1]]


# -- the published rule ---------------------------------------------------------------------------

TWO: list[Row] = [(0.0, 100, 10.0), (0.0, 200, 20.0)]
# T_l = ((10 + 20) + (20 + 20)) x 2 x 1.2 = 168 s; T_o = ((100 + 200) + (200 + 200)) x 2 x 1.2
# = 1680 tokens, half a second each: 840 s. Together 1008 s.


@pytest.mark.parametrize(
    ("variant", "threshold_s", "together"),
    [
        ("slo-odbs", 1008.0, True),
        ("slo-odbs", 1007.0, False),
        ("odbs", 840.0, True),
        ("odbs", 839.0, False),
        ("slo-dbs", 168.0, True),
        ("slo-dbs", 167.0, False),
    ],
)
def test_published(variant: str, threshold_s: float, together: bool):
    policy = uellm(variant=variant, rule="published", published_threshold_s=threshold_s)
    assert groups(policy, *TWO) == ([[0, 1]] if together else [[0], [1]])


def test_published_default_fills_batches_of_512_but_not_of_1024():
    # n requests: 1.2 n^2 x (225 + 225 + 0.5 x 2 x len): 115,440 s for ten of 512 tokens; for
    # 1,024: 1.2 x 64 x 1474 = 113,203 s for eight, 143,273 s for nine.
    policy = uellm(rule="published")
    assert [len(g) for g in groups(policy, *lengths(*[512] * 12))] == [10, 2]
    assert [len(g) for g in groups(policy, *lengths(*[1024] * 12))] == [8, 4]


# -- s3, fifo, sizes ------------------------------------------------------------------------------


def test_s3_fills_bins():
    rows = lengths(100, 60, 90, 200, 300)  # sorted: 60 + 90 + 100 = 250 <= 256
    assert groups(uellm(variant="s3"), *rows) == [[1, 2, 0], [3], [4]]
    assert groups(uellm(variant="s3", s3_bin_tokens=249), *rows) == [[1, 2], [0], [3], [4]]


def test_sizes():
    rows = lengths(*[1] * 25)
    assert [len(g) for g in groups(uellm(variant="s3"), *rows)] == [20, 5]
    assert [len(g) for g in groups(uellm(variant="fifo"), *rows)] == [10, 10, 5]
    assert [len(g) for g in groups(uellm(max_batch_size=18), *rows)] == [18, 7]


def test_fifo_takes_anything():
    rows = [(1.0, 2000, 1.0), (0.0, 1, 900.0), (2.0, 900, 5.0)]
    assert groups(uellm(variant="fifo", threshold_tokens=0), *rows) == [[1, 0, 2]]


@pytest.mark.parametrize(("retries", "size"), [(0, 8), (1, 4), (3, 1), (9, 1)])
def test_out_of_memory_halves_the_batch(retries: int, size: int):
    policy = uellm(max_batch_size=8)
    view = view_of(policy, *lengths(*[5] * 10))
    next(iter(view.waiting)).retries = retries
    assert batch(policy.plan(view)) == list(range(size))


# -- how it runs ----------------------------------------------------------------------------------


def test_padded_together_and_no_cap():
    policy = uellm()
    plan = policy.plan(view_of(policy, *lengths(5)))
    assert isinstance(plan, RunToCompletion)
    assert (plan.padded, plan.release, plan.finished_rows) == (True, "together", "compute")
    assert plan.max_new_tokens is None


@pytest.mark.parametrize(
    ("config", "predicted", "cap"),
    [
        ({"generation_cap": "predicted"}, (80, 200), 250),  # UELLM-all
        ({"generation_cap": "predicted", "cap_slack_tokens": 500}, (80, 200), 700),
        (
            {"generation_cap": "predicted", "cap_slack_tokens": 500, "cap_tokens": 1024},
            (80, 900),
            1024,  # UELLM-batch
        ),
        ({"generation_cap": "predicted"}, (80, 0), None),  # one has no prediction
        ({"generation_cap": "fixed"}, (80, 0), 1024),  # UELLM-deploy
        ({"generation_cap": "fixed", "cap_tokens": 99}, (80, 200), 99),
        ({"generation_cap": "none", "cap_tokens": 99}, (80, 200), None),
    ],
)
def test_generation_cap(config: dict[str, Any], predicted: tuple[int, int], cap: int | None):
    policy = uellm(**config)
    plan = policy.plan(view_of(policy, *lengths(*predicted)))
    assert isinstance(plan, RunToCompletion)
    assert len(plan.requests) == 2
    assert plan.max_new_tokens == cap


def test_nothing_waits():
    policy = uellm()
    assert policy.plan(view_of(policy)) is None


def test_same_view_same_plan():
    policy = uellm()
    view = view_of(policy, *FOUR)
    assert batch(policy.plan(view)) == batch(policy.plan(view))
    assert len(view.waiting) == 4


# -- layouts --------------------------------------------------------------------------------------


def layout(gpus: int, min_tp: int, known: dict[str, float] | None = None, **config: Any) -> Any:
    cluster = ClusterInfo(gpus, min_tp)
    vars(cluster).update(known or {})
    pools = uellm(**config).pools(cluster)
    assert all(pool.role == "mixed" for pool in pools)
    return [(pool.instances, pool.tp, pool.pp) for pool in pools]


def test_layouts():
    assert layout(4, 1) == [(1, 4, 1)]
    assert layout(4, 1, layout="replicas") == [(4, 1, 1)]
    assert layout(4, 2, layout="replicas") == [(2, 2, 1)]
    assert layout(4, 1, layout="layer-split") == [(1, 1, 4)]


def test_the_deployer_without_numbers_takes_the_fewest_gpus():
    for name in ("helr", "he", "lr"):
        assert layout(4, 2, layout=name) == [(1, 1, 2)]
        assert layout(4, 2, layout=name, replicate=True) == [(2, 1, 2)]


GB = 1e9
LLAMA = {
    "layers": 40,
    "layer_bytes": 0.65 * GB,  # 26 GB
    "kv_layer_token_bytes": 20_480,  # 10,240 tokens: 8.4 GB
    "gpu_bytes": 36 * GB,
    "layer_s": 0.0006,
    "transfer_s": 0.0001,
}


@pytest.mark.parametrize("name", ["helr", "he", "lr"])
def test_the_deployer_puts_llama_on_one_gpu(name: str):
    # 26 + 8.4 GB fit 36 GB; more GPUs only add transfers.
    assert layout(4, 1, LLAMA, layout=name) == [(1, 1, 1)]
    assert layout(4, 1, LLAMA, layout=name, replicate=True) == [(4, 1, 1)]
    # 24 GB GPUs hold 27 of the 40 layers.
    assert layout(4, 2, {**LLAMA, "gpu_bytes": 24 * GB}, layout=name) == [(1, 1, 2)]


def test_the_deployer_finds_nothing():
    with pytest.raises(BadInput, match="kv_reserve_tokens=10240"):
        layout(4, 4, {**LLAMA, "gpu_bytes": 8 * GB}, layout="helr")


@pytest.mark.parametrize(
    "bad",
    [
        {"variant": "best"},
        {"rule": "guess"},
        {"max_batch_size": 0},
        {"generation_cap": "predicted+50"},
        {"default_e2e_slo_s": 0},
        {"layout": "tp4"},
        {"b": 1},
    ],
)
def test_bad_config(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        UellmConfig(**bad)
