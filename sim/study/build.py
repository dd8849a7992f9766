"""From a validated experiment to what the engine runs: instances, policy, settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import cast

import policies
from sim.core.attention import Ctas
from sim.core.inbox import check_ahead
from sim.core.outages import ExponentialOutages, Outages
from sim.core.predictors import LengthPredictor, make_predictor
from sim.core.routers import PrefixRouting
from sim.core.simulation import ROLE_ORDER
from sim.core.spec import InstanceSpec, Settings
from sim.costs.build import InstanceCost, instance_cost
from sim.costs.catalogue import gpu_named, model_named
from sim.costs.memory import min_tp
from sim.study.config import Experiment, FailuresConfig, PolicyChoice
from sim.study.idle_keys import idle_notes
from sim.study.policy_facts import roles_of
from sim.study.power import capped, cluster_power
from sim.study.speculative import check_speculation, speculation_of, with_drafter
from sim.study.statistics.clock import ENGINE
from sim.study.statistics.energy import ClusterPower
from sim.types import BadInput, ClusterInfo, Policy, Pool, Trace
from workloads.arrivals import Closed

GIB = 2**30
BYTES_PER_GB = 1e9
MS_PER_S = 1e3
LAYOUT_DTYPE = "fp16"
ETHERNET_BYTES_PER_S = 12.5e9
"""100 Gbit/s, the inter-node network of Splitwise's study (spec: others.md section 5)."""


@dataclass(frozen=True, eq=False)
class InstanceInfo:
    """One instance: what the engine gets and what reports want to know.

    Attributes:
        pool: its pool.
        gpu: catalogue name.
        costs: latency and capacity.
        spec: for the engine.
    """

    pool: Pool
    gpu: str
    costs: InstanceCost
    spec: InstanceSpec

    @property
    def gpus(self) -> int:
        """GPUs of the instance."""
        return self.pool.tp * self.pool.pp


@dataclass(frozen=True)
class Setup:
    """A cluster with a policy on it.

    Attributes:
        policy: the decisions.
        instances: by instance id.
        notes: what the reader of any output must be told.
        power: what its energy is counted by; None: unknown.
    """

    policy: Policy
    instances: tuple[InstanceInfo, ...]
    notes: tuple[str, ...]
    power: ClusterPower | None = None

    @property
    def specs(self) -> list[InstanceSpec]:
        """What `simulate` takes."""
        return [instance.spec for instance in self.instances]

    @property
    def gpus(self) -> int:
        """GPUs in use."""
        return sum(instance.gpus for instance in self.instances)


def build(experiment: Experiment, choice: PolicyChoice) -> Setup:
    """Lay out the cluster for a policy and price its instances.

    Raises:
        BadInput: an unknown name, or a layout that cannot be.
    """
    make = cast("Callable[[object], Policy]", policies.load(choice.name))
    policy = make(choice.params)
    check_speculation(experiment, policy)
    pools = _pools(experiment, policy)
    instances: list[InstanceInfo] = []
    for pool in sorted(pools, key=lambda pool: ROLE_ORDER.index(pool.role)):
        whole = _instance(experiment, policy, pool)
        for _ in range(pool.instances):
            instances += _lanes(experiment, whole, len(instances))
    if experiment.engine.async_scheduling:
        try:
            check_ahead(policy, [instance.spec for instance in instances])
        except BadInput as error:
            where = experiment.origins.where("engine.async_scheduling")
            raise BadInput(f"{where}: {error}") from None
    costs = [instance.costs for instance in instances]
    notes = [note for cost in costs for note in (*cost.notes, *cost.kv_notes)]
    notes += idle_notes(experiment, policy, instances)
    power, told = cluster_power(
        experiment.power, experiment.cluster.model, instances, experiment.origins.where
    )
    return Setup(policy, tuple(instances), tuple(dict.fromkeys(notes + told)), power)


def settings(
    experiment: Experiment,
    policy: Policy,
    trace: Trace,
    router_seed: int,
    failure_seed: int | None = None,
    acceptance_seed: int = 0,
) -> Settings:
    """Return how the engine runs `trace` under `policy`; without `failure_seed` nothing fails."""
    engine = experiment.engine
    link = experiment.cluster.link
    if trace.prefix_group is not None and trace.prefix_len is None:
        what = "enable_prefix_caching" if engine.enable_prefix_caching else "router"
        if engine.enable_prefix_caching or engine.router == "prefix":
            raise BadInput(
                f"{experiment.workload.source}: has prefix_group but no shared_prefix_tokens (or "
                f"prefix_len), which engine.{what} needs"
            )
    closed = experiment.workload.arrivals
    if not isinstance(closed, Closed):
        closed = None
    return Settings(
        fuse_steps=engine.fuse_steps,
        loop=engine.loop,
        padding=engine.padding,
        router=engine.router,
        router_seed=router_seed,
        abort_after_s=experiment.slo.abort_after_s,
        horizon_s=experiment.run.horizon_s,
        oom_restart_s=engine.oom_restart_s,
        concurrency=closed.concurrency if closed else None,
        think_s=closed.think_s if closed else 0.0,
        decode_router=engine.decode_router,
        link_bytes_per_s=_link_bytes_per_s(experiment),
        link_latency_s=link.latency_ms / MS_PER_S,
        link_shared=link.shared,
        link_overlap=link.overlap,
        first_token=engine.first_token,
        async_scheduling=engine.async_scheduling,
        reserve_full_isl=engine.scheduler_reserve_full_isl,
        first_step_s=engine.first_step_ms / MS_PER_S,
        note_queued=engine.ttft_clock == ENGINE,
        enable_prefix_caching=engine.enable_prefix_caching,
        prefix_routing=PrefixRouting(**engine.prefix_routing.model_dump()),
        ttft_slo_s=_bounds_s(experiment, trace, "ttft_ms"),
        e2e_slo_s=_bounds_s(experiment, trace, "e2e_ms"),
        predictor=_predictor(experiment, policy, trace, router_seed),
        outages=_outages(engine.failures, failure_seed),
        speculation=speculation_of(experiment, policy, acceptance_seed),
    )


def _link_bytes_per_s(experiment: Experiment) -> float:
    link = experiment.cluster.link
    if link.gb_per_s is not None:
        return link.gb_per_s * BYTES_PER_GB
    if link.name == "ethernet":
        return ETHERNET_BYTES_PER_S
    gpu = gpu_named(experiment.cluster.gpu)
    # A GPU without NVLink moves KV over PCIe, whatever the default says.
    return gpu.pcie_bytes_per_s if link.name == "pcie" else gpu.link_bytes_per_s


def _bounds_s(experiment: Experiment, trace: Trace, bound: str) -> list[float]:
    """Return a bound of each source in seconds, -1 where there is none; [] if there is none."""
    slo = experiment.slo
    found = []
    for source in trace.sources:
        value = getattr(slo.bounds(source if source in slo.by else None), bound)
        found.append(-1.0 if value is None else value / MS_PER_S)
    return found if max(found) >= 0 else []


def _outages(config: FailuresConfig | None, seed: int | None) -> Outages | None:
    """Return the failures of a run; None without the section or without a seed."""
    if config is None or seed is None:
        return None
    return ExponentialOutages(config.mtbf_s, config.repair_s, seed)


def _predictor(
    experiment: Experiment, policy: Policy, trace: Trace, seed: int
) -> LengthPredictor | None:
    if not policy.uses_predictions:
        return None
    chosen = experiment.engine.predictor
    mean_tokens = float(trace.output_len.mean()) if len(trace) else 1.0
    return make_predictor(chosen.name, seed, chosen.accuracy, chosen.tokens, mean_tokens)


def max_model_len(experiment: Experiment) -> int:
    """Return the longest prompt + output in tokens: the engine's, else workload's or model's."""
    if experiment.engine.max_model_len is not None:
        return experiment.engine.max_model_len
    of_model = model_named(experiment.cluster.model).max_length
    return min(of_model, experiment.workload.max_model_len or of_model)


# -- layout -------------------------------------------------------------------------------------


def _pools(experiment: Experiment, policy: Policy) -> Sequence[Pool]:
    cluster = experiment.cluster
    if cluster.pools is not None:
        source = f"{experiment.origins.where('cluster.pools')}: cluster.pools"
        pools = [
            Pool(p.role, p.instances, p.tp, p.pp, p.gpu, profile=p.profile) for p in cluster.pools
        ]
    else:
        source = f"policy {policy.name!r}"
        tp = _min_tp(experiment)
        if tp > cluster.count:
            raise BadInput(
                f"cluster.count: {cluster.model} needs {tp} {cluster.gpu} (tp {tp}), "
                f"there are {cluster.count}"
            )
        pools = list(policy.pools(_cluster_info(experiment, tp)))
    _check_pools(pools, source, cluster.count)
    if cluster.pools is not None:
        _check_split(pools, policy, source)
    return pools


def _cluster_info(experiment: Experiment, tp: int) -> ClusterInfo:
    cluster = experiment.cluster
    model, gpu = model_named(cluster.model), gpu_named(cluster.gpu)
    layer_bytes = model.weight_bytes(LAYOUT_DTYPE) / model.layers
    return ClusterInfo(
        cluster.count,
        tp,
        layers=model.layers,
        layer_bytes=layer_bytes,
        kv_layer_token_bytes=model.kv_bytes_per_token(LAYOUT_DTYPE) / model.layers,
        gpu_bytes=gpu.memory_bytes * experiment.engine.gpu_memory_utilization,
        layer_s=layer_bytes / gpu.bandwidth_bytes_per_s,
        transfer_s=model.hidden * 2 / _link_bytes_per_s(experiment),
    )


def _min_tp(experiment: Experiment) -> int:
    cluster = experiment.cluster
    return min_tp(
        model_named(cluster.model),
        gpu_named(cluster.gpu),
        max_model_len=max_model_len(experiment),
        gpu_memory_utilization=experiment.engine.gpu_memory_utilization,
    )


def _check_split(pools: Sequence[Pool], policy: Policy, source: str) -> None:
    """Refuse split roles under a policy whose own layout never splits them.

    Such a policy plans both phases on one instance: it would not take what was prefilled elsewhere,
    or leave the decode instances without work.
    """
    split = sorted({pool.role for pool in pools if pool.instances} - {"mixed"})
    if split and set(roles_of(policy)) <= {"mixed"}:
        raise BadInput(
            f"{source}: role {', '.join(split)}: policy {policy.name!r} prefills and decodes a "
            "request on one instance; valid: mixed, or a policy that `bucketsim policies` lists "
            "with prefill+decode"
        )


def _check_pools(pools: Sequence[Pool], source: str, count: int) -> None:
    roles = {pool.role for pool in pools if pool.instances}
    if ("prefill" in roles) != ("decode" in roles):
        raise BadInput(f"{source}: prefill and decode pools need each other, got {sorted(roles)}")
    if not sum(pool.instances for pool in pools):
        raise BadInput(f"{source}: no instances")
    gpus = sum(pool.instances * pool.tp * pool.pp for pool in pools)
    if gpus > count:
        raise BadInput(f"{source}: {gpus} GPUs wanted, cluster.count is {count}")


def _lanes(experiment: Experiment, whole: InstanceInfo, number: int) -> list[InstanceInfo]:
    """Return what an engine runs as: itself, or a lane for each stage of a pipeline."""
    pool = whole.pool
    if pool.pp == 1 or pool.sequential or experiment.engine.pipeline == "sequential":
        return [whole]
    lanes = []
    for _ in range(pool.pp):
        spec = copy(whole.spec)
        spec.total_blocks //= pool.pp
        spec.total_swap_blocks //= pool.pp
        spec.pipeline, spec.stages = number, pool.pp
        # a lane counts as its share of the GPUs
        lane = Pool(pool.role, 1, pool.tp, 1, pool.gpu, profile=pool.profile)
        lanes.append(InstanceInfo(lane, whole.gpu, whole.costs, spec))
    return lanes


def _instance(experiment: Experiment, policy: Policy, pool: Pool) -> InstanceInfo:
    cluster, engine = experiment.cluster, experiment.engine
    gpu = pool.gpu or cluster.gpu
    costs = instance_cost(
        cluster.model,
        gpu,
        pool.tp,
        pool.pp,
        pool.profile or cluster.profile,
        num_gpu_blocks=engine.num_gpu_blocks,
        block_size=engine.block_size,
        max_model_len=max_model_len(experiment),
        gpu_memory_utilization=engine.gpu_memory_utilization,
        min_step_s=engine.min_step_ms / MS_PER_S,
        host=engine.host,
    )
    limited = capped(experiment.power, gpu, costs.cost, experiment.origins.where)
    costs, cost = with_drafter(experiment, policy, pool, replace(costs, cost=limited))
    gpus = pool.tp * pool.pp
    swap_bytes = engine.swap_space_gib * GIB * gpus
    # Every GPU of the instance copies its own share of a block over its own link.
    bytes_per_s = gpu_named(gpu).pcie_bytes_per_s * gpus
    if engine.swap_gb_per_s is not None:
        bytes_per_s = engine.swap_gb_per_s * BYTES_PER_GB * gpus
    usable_blocks = costs.num_gpu_blocks - engine.null_block
    if not usable_blocks:
        raise BadInput("engine.num_gpu_blocks 1: none is left beside the null block; at least 2")
    spec = InstanceSpec(
        cost=cost,
        total_blocks=usable_blocks,
        block_size=costs.block_size,
        role=pool.role,
        max_model_len=costs.max_model_len,
        total_swap_blocks=int(swap_bytes // costs.kv_block_bytes),
        swap_s_per_block=costs.kv_block_bytes / bytes_per_s,
        max_step_tokens=costs.max_step_tokens,
        kv_token_bytes=costs.kv_block_bytes // costs.block_size,
        gpu=gpu,
        tp=pool.tp,
        ctas=_ctas(experiment, gpu, pool.tp),
        cascade_attention=engine.cascade_attention,
    )
    return InstanceInfo(pool, gpu, costs, spec)


def _ctas(experiment: Experiment, gpu: str, tp: int) -> Ctas | None:
    """Return the thread blocks that whole rows of attention go to; None: work is split evenly."""
    engine = experiment.engine
    if engine.attention != "ragged":
        return None
    sms = gpu_named(gpu).sms
    if sms is None:
        where = experiment.origins.where("engine.attention")
        raise BadInput(
            f"{where}: engine.attention: ragged deals rows to thread blocks, {gpu!r} has none; "
            "valid: fitted, balanced"
        )
    model = model_named(experiment.cluster.model)
    kv_heads = max(1, model.kv_heads // tp)
    return Ctas(
        sms * engine.attention_ctas_per_sm, kv_heads, max(1, model.heads // (tp * kv_heads))
    )
