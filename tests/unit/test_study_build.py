import pytest

import policies
from sim.core.simulation import simulate
from sim.study.build import build, max_model_len, settings
from sim.study.config import resolve
from sim.study.run import requests_of
from sim.types import BadInput


def experiment(cluster=(), engine=(), workload=(), policy="continuous", slo=()):
    return resolve(
        {
            "cluster": {"gpu": "a100-40gb", "count": 4, "model": "llama-2-13b", **dict(cluster)},
            "policy": policy,
            "workload": {
                "source": "sharegpt",
                "num_requests": 10,
                "arrivals": {"process": "poisson", "rate": 1},
                **dict(workload),
            },
            "engine": dict(engine),
            "slo": dict(slo),
        },
        "test",
    )


def how(chosen, router_seed=0):
    """The engine's settings for the first policy."""
    policy = build(chosen, chosen.policies[0]).policy
    return settings(chosen, policy, requests_of(chosen, 0), router_seed)


def built(**sections):
    chosen = experiment(**sections)
    return build(chosen, chosen.policies[0])


def test_the_policy_lays_out_as_many_instances_as_fit():
    setup = built()
    assert (len(setup.instances), setup.gpus) == (4, 4)
    assert {spec.total_blocks for spec in setup.specs} == {961}
    assert any("not measured" in note for note in setup.notes)


def test_pools_of_the_config_win():
    setup = built(cluster={"pools": [{"instances": 1, "tp": 2}, {"instances": 2}]})
    assert [i.pool.tp for i in setup.instances] == [2, 1, 1]
    assert setup.gpus == 4


def test_a_pool_may_have_a_profile_of_its_own():
    pools = [
        {"role": "prefill", "instances": 1},
        {"role": "decode", "instances": 1, "profile": "roofline"},
    ]
    setup = built(cluster={"pools": pools}, policy="distserve")
    prefill, decode = (instance.costs.profile for instance in setup.instances)
    assert (prefill.basis, decode.basis) == ("derived", "roofline")
    alone = built(cluster={"profile": "roofline"}).instances[0]
    assert decode == alone.costs.profile
    assert setup.specs[1].cost.decode(4).base_fs == alone.spec.cost.decode(4).base_fs


def test_roofline_needs_no_profile():
    setup = built(cluster={"gpu": "h200", "model": "qwen3-32b", "count": 1, "profile": "roofline"})
    assert any("peak figures, not measured" in note for note in setup.notes)
    assert any("formula" in note for note in setup.notes)


def test_the_null_block_is_taken_off():
    assert built(engine={"num_gpu_blocks": 100, "null_block": True}).specs[0].total_blocks == 99
    with pytest.raises(BadInput, match="null block"):
        built(engine={"num_gpu_blocks": 1, "null_block": True})


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("static", "runs static batches"),
        ({"name": "continuous", "scheduler": "v0"}, "scheduler v0"),
        ({"name": "continuous", "queue": "cluster"}, "one queue of all instances"),
        ("distserve", "hands requests over"),
        ("splitwise", "hands requests over"),
    ],
)
def test_what_cannot_be_scheduled_ahead_is_refused(policy, why):
    with pytest.raises(BadInput, match=rf"engine.async_scheduling true: .*{why}.*; valid: false"):
        built(engine={"async_scheduling": True}, policy=policy)


def test_lanes_of_a_pipeline_are_not_scheduled_ahead():
    cluster = {"pools": [{"instances": 1, "pp": 2}]}
    with pytest.raises(BadInput, match="lanes of a pipeline"):
        built(engine={"async_scheduling": True}, cluster=cluster)


def test_engine_semantics_reach_the_engine():
    engine = {"async_scheduling": True, "scheduler_reserve_full_isl": True, "first_step_ms": 50}
    found = how(experiment(engine=engine))
    assert (found.async_scheduling, found.reserve_full_isl, found.first_step_s) == (
        True,
        True,
        0.05,
    )
    found = how(experiment())
    assert (found.async_scheduling, found.reserve_full_isl, found.first_step_s) == (False, False, 0)


def test_engine_overrides_reach_the_instances():
    setup = built(engine={"num_gpu_blocks": 100, "block_size": 32, "max_model_len": 1000})
    spec = setup.specs[0]
    assert (spec.total_blocks, spec.block_size, spec.max_model_len) == (100, 32, 1000)


def test_swap_space_and_speed_are_per_gpu():
    engine = {"swap_space_gib": 1.0, "swap_gb_per_s": 10.0}
    one = built(engine=engine).specs[0]
    two = built(engine=engine, cluster={"pools": [{"instances": 1, "tp": 2}]}).specs[0]
    block_bytes = 2 * 40 * 40 * 128 * 2 * 16
    assert one.total_swap_blocks == 2**30 // block_bytes
    assert one.swap_s_per_block == pytest.approx(block_bytes / 10e9)
    assert two.total_swap_blocks == 2 * 2**30 // block_bytes
    assert two.swap_s_per_block == pytest.approx(one.swap_s_per_block / 2)
    # by default the PCIe figure of the catalogue
    assert built().specs[0].swap_s_per_block == pytest.approx(block_bytes / 32e9)


def test_the_longest_request_is_the_engines_else_the_workloads_else_the_models():
    assert max_model_len(experiment()) == 4096
    assert max_model_len(experiment(workload={"max_model_len": 1000})) == 1000
    assert max_model_len(experiment(workload={"max_model_len": 10_000})) == 4096
    both = experiment(workload={"max_model_len": 1000}, engine={"max_model_len": 2000})
    assert max_model_len(both) == 2000


def test_a_closed_loop_is_a_setting_of_the_engine():
    arrivals = {"process": "closed", "concurrency": 7, "think_s": 2}
    chosen = how(experiment(workload={"arrivals": arrivals}), router_seed=5)
    assert (chosen.concurrency, chosen.think_s, chosen.router_seed) == (7, 2, 5)
    assert how(experiment()).concurrency is None


def test_links_are_named_or_given():
    def link(**values):
        return how(experiment(cluster={"link": values})).links[0]

    assert link() == 300e9  # NVLink of an A100, one way
    assert link(name="pcie") == 32e9
    assert link(name="ethernet") == 12.5e9
    assert link(name="ethernet", gb_per_s=1) == 1e9


def test_bounds_are_those_of_each_source():
    slo = {"ttft_ms": 500, "scale": 2, "by": {"longbench": {"ttft_ms": 4000}}}
    chosen = how(experiment(workload={"source": "mixed"}, slo=slo))
    assert chosen.ttft_slo_s == [1.0, 8.0]  # alpaca, longbench
    assert chosen.e2e_slo_s == []


def test_predictions_run_only_for_policies_that_want_them():
    assert how(experiment()).predictor is None
    assert how(experiment(policy="uellm")).predictor is not None


def test_a_pipeline_is_one_lane_a_stage():
    pools = [{"instances": 1, "tp": 1, "pp": 2}]
    lanes = built(cluster={"pools": pools})
    assert [(s.pipeline, s.stages) for s in lanes.specs] == [(0, 2), (0, 2)]
    assert lanes.gpus == 2
    assert any("pp 2" in note for note in lanes.notes)
    (whole,) = built(cluster={"pools": pools}, engine={"pipeline": "sequential"}).specs
    assert whole.total_blocks // 2 == lanes.specs[0].total_blocks


SPLIT = [{"role": "decode", "instances": 1}, {"role": "prefill", "instances": 2}]
SPLITTING = {"bucketserve", "bucketserve-optimal", "deadline-batch", "distserve", "splitwise"}
"""The built-in policies that may run on split pools (`smdp`: as it is configured)."""


def test_instances_stand_in_the_order_prefill_mixed_decode():
    roles = [spec.role for spec in built(cluster={"pools": SPLIT}, policy="distserve").specs]
    assert roles == ["prefill", "prefill", "decode"]


@pytest.mark.parametrize("name", policies.names())
def test_split_pools_are_for_policies_that_split(name):
    if name in SPLITTING:
        assert len(built(cluster={"pools": SPLIT}, policy=name).instances) == 3
        return
    with pytest.raises(BadInput) as error:
        built(cluster={"pools": SPLIT}, policy=name)
    assert str(error.value) == (
        f"test: cluster.pools: role decode, prefill: policy '{name}' prefills and decodes a "
        "request on one instance; valid: mixed, or a policy that `bucketsim policies` lists with "
        "prefill+decode"
    )


def test_a_policy_splits_as_it_is_configured():
    setup = built(cluster={"pools": SPLIT}, policy={"name": "smdp", "applies_to": "prefill"})
    assert len(setup.instances) == 3


@pytest.mark.parametrize("name", sorted(SPLITTING))
def test_policies_that_split_run_on_mixed_instances_too(name):
    chosen = experiment(cluster={"pools": [{"instances": 2}]}, policy=name)
    setup = build(chosen, chosen.policies[0])
    trace = requests_of(chosen, 0)
    record = simulate(trace, setup.policy, setup.specs, settings(chosen, setup.policy, trace, 0))
    assert set(record.requests["status"]) == {"finished"}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"cluster": {"gpu": "a100"}}, "unknown GPU 'a100'"),
        ({"cluster": {"model": "llama"}}, "unknown model 'llama'"),
        ({"cluster": {"profile": "nope"}}, "no profile named 'nope'"),
        ({"cluster": {"model": "qwen3-32b"}}, "roofline works for any"),
        (
            {"cluster": {"model": "llama-2-70b", "count": 1, "profile": "roofline"}},
            "cluster.count: llama-2-70b needs 4 a100-40gb (tp 4), there are 1",
        ),
        ({"cluster": {"pools": [{"instances": 5}]}}, "5 GPUs wanted, cluster.count is 4"),
        ({"cluster": {"pools": [{"instances": 1, "tp": 3}]}}, "tp 3 does not divide the 40 heads"),
        ({"cluster": {"pools": [{"role": "prefill", "instances": 1}]}}, "need each other"),
        ({"engine": {"num_gpu_blocks": 10**6}}, "num_gpu_blocks 1000000"),
        ({"engine": {"max_model_len": 10**6}}, "max_model_len 1000000"),
    ],
)
def test_impossible_clusters_are_refused(sections, said):
    with pytest.raises(BadInput) as error:
        built(**sections)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
