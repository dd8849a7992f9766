"""From the `power` section to what energy is counted by, and to step times under a cap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sim.costs.capped import CappedCost
from sim.costs.catalogue import DTYPE_BYTES, gpu_named, model_named
from sim.costs.power import GpuPower, check_cap, power_of, powers
from sim.study.config import NOTHING_ASKED, PowerConfig
from sim.study.statistics.energy import ClusterPower, InstancePower
from sim.types import BadInput, CostModel

if TYPE_CHECKING:
    from sim.study.build import InstanceInfo

Where = Callable[[str], str]
"""Says who set a key."""

UNCERTAIN = (
    "energy by power model {model}: absolute power is known to +-30 % at best; compare policies "
    "under phase, logistic and roofline"
)


def capped(config: PowerConfig | None, gpu: str, cost: CostModel, where: Where) -> CostModel:
    """Return the step times of an instance of `gpu` under the cap of the config, if it has one."""
    if config is None or config.cap_w is None:
        return cost
    power = _power_of(config, gpu, where)
    try:
        check_cap(power, config.cap_w)
    except BadInput as error:
        raise BadInput(f"{where('power.cap_w')}: power.cap_w: {error}") from None
    return CappedCost(cost, power, config.cap_w) if config.cap_w < power.tdp_w else cost


def cluster_power(
    config: PowerConfig | None, model: str, instances: Sequence[InstanceInfo], where: Where
) -> tuple[ClusterPower | None, list[str]]:
    """Return what the energy of a run is counted by, and what the reader must be told.

    Without power data it is None where nobody asked.

    Raises:
        BadInput: energy was asked for, and a GPU has no power data.
    """
    chosen = config or NOTHING_ASKED
    lacking = {i.gpu for i in instances} - set(powers())
    if config is None and lacking:
        some = ", ".join(powers())
        return None, [
            f"no energy: there are no power data for {', '.join(sorted(lacking))}, only for "
            f"{some}; power.gpu lets one stand for another"
        ]
    found = {i.gpu: _power_of(chosen, i.gpu, where) for i in instances}
    of_instances = [_instance(chosen, model, i, found[i.gpu]) for i in instances]
    cluster = ClusterPower(
        model=chosen.model,
        instances=tuple(of_instances),
        host_w=sum(_host_w(chosen, found[i.gpu]) * i.gpus for i in instances),
        rating_w=sum(found[i.gpu].rating_w_per_gpu(chosen.cap_w) * i.gpus for i in instances),
        carbon_g_per_kwh=chosen.carbon_g_per_kwh,
        price_per_kwh=chosen.price_per_kwh,
    )
    return cluster, [] if config is None else _notes(config, found)


def _power_of(config: PowerConfig, gpu: str, where: Where) -> GpuPower:
    try:
        return power_of(config.gpu or gpu)
    except BadInput as error:
        key = "power" if config.gpu is None else "power.gpu"
        raise BadInput(f"{where(key)}: {key}: {error}") from None


def _host_w(config: PowerConfig, power: GpuPower) -> float:
    return power.host_w_per_gpu if config.host_w_per_gpu is None else config.host_w_per_gpu


def _instance(
    config: PowerConfig, model: str, info: InstanceInfo, power: GpuPower
) -> InstancePower:
    shape, device, costs = model_named(model), gpu_named(info.gpu), info.costs
    params = shape.layers * shape.layer_matmul_params + shape.lm_head_params
    return InstancePower(
        power=power.capped(config.cap_w),
        gpus=info.gpus,
        busy_gpus=info.pool.tp,
        peak_flops_per_s=device.peak_flops_per_s * info.pool.tp,
        bandwidth_bytes_per_s=device.bandwidth_bytes_per_s * info.pool.tp,
        token_flops=2.0 * shape.layers * shape.layer_matmul_params,
        row_flops=2.0 * shape.lm_head_params,
        pair_flops=shape.attention_flops_per_pair,
        weight_bytes=params * DTYPE_BYTES[costs.profile.dtype],
        kv_token_bytes=costs.kv_block_bytes / costs.block_size,
    )


def _notes(config: PowerConfig, found: Mapping[str, GpuPower]) -> list[str]:
    notes = [UNCERTAIN.format(model=config.model)]
    for gpu, power in found.items():
        if power.name != gpu:
            notes.append(f"power of {gpu} is that of {power.name}: power.gpu says so")
        elif power.quality.startswith("derived"):
            notes.append(f"power of {gpu}: {power.quality}")
        if config.cap_w is not None and config.cap_w < power.logistic.min_w:
            notes.append(
                f"power.cap_w {config.cap_w:g} is below the {power.logistic.min_w:g} W that decode "
                f"draws on {gpu}: decode would slow down, too, which is not modelled"
            )
    return notes
