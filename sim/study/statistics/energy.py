"""Energy of a run, from its step log: power times time, over steps, idle time and hosts.

A row of the log holds a span of steps of one batch. By the models `phase` and `logistic` its power
is constant: its energy is power times duration. By `mfu` and `roofline` power changes from step to
step (t^0.3 * FLOPs^0.7 has no sum in closed form), so the steps are written out, a piece at a time.

Over the whole run, warm-up and end included:

* `gpu_energy_j`: of the GPUs in use; `gpu_energy_prefill_j`, `_decode_j`, `_mixed_j` in steps,
  `_idle_j` the rest of the time; an instance that is down draws nothing.
* `gpu_power_w`, `gpu_power_w_per_gpu`: the same as mean power, of all GPUs and of one.
* `node_energy_j`, `node_energy_kwh`, `node_power_w`: GPUs and their share of the hosts, which draw
  the same all the time.
* `provisioned_power_w`: what the machines are rated at, the share of the GPUs in use (Splitwise
  reports power so).
* `gpu_energy_j_per_request`, `_per_output_token`, `_per_token` (prompts, too) and likewise
  `node_energy_j_per_…`: over the requests that finished.
* `carbon_g`, `energy_cost`: node energy by the factors of the config, if it has them.

Conventions (named assumptions): what of a step is no computation (KV copies it waits for, an
engine's minimum, a pipeline lane's wait for a stage) draws the power of the step; a restart after
out of memory, the step that a failure or the horizon cuts, and a wait are idle; of a pipeline whose
stages take turns, the others idle; links draw nothing. In `mfu` and `roofline` the prompts of a
step count as equally long, and keys that a chunk finds in the cache are read but not computed on:
the log keeps no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.core.records import KINDS, RunRecord
from sim.costs.power import GpuPower, PowerModel
from sim.types import FS_PER_S

Floats = NDArray[np.float64]
Rows = NDArray[np.void]

J_PER_KWH = 3.6e6
PHASES = ("prefill", "decode", "mixed")
PHASE_OF_KIND = np.array([PHASES.index(kind.removeprefix("static_")) for kind in KINDS])
PIECE_STEPS = 1 << 18
"""Steps written out at a time (some 10 MB an array)."""


@dataclass(frozen=True)
class InstancePower:
    """What an instance draws, and what that takes to know.

    Attributes:
        power: data of one of its GPUs, capped.
        gpus: how many it has.
        busy_gpus: how many work at a time; less than `gpus` where pipeline stages take turns.
        peak_flops_per_s: of the busy GPUs.
        bandwidth_bytes_per_s: of their memory.
        token_flops: of a token in the layers, without attention.
        row_flops: of a row that needs logits.
        pair_flops: of a query token with a key token.
        weight_bytes: read in every step.
        kv_token_bytes: of a cached token.
    """

    power: GpuPower
    gpus: int
    busy_gpus: int
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float
    token_flops: float
    row_flops: float
    pair_flops: float
    weight_bytes: float
    kv_token_bytes: float


@dataclass(frozen=True)
class ClusterPower:
    """What the energy of a run is counted by.

    Attributes:
        model: of power in a step.
        instances: by id.
        host_w: of the hosts' share, constant.
        rating_w: of the machines' share.
        carbon_g_per_kwh: of the electricity; None: unknown.
        price_per_kwh: of the electricity; None: unknown.
    """

    model: PowerModel
    instances: tuple[InstancePower, ...]
    host_w: float
    rating_w: float
    carbon_g_per_kwh: float | None = None
    price_per_kwh: float | None = None

    @property
    def gpus(self) -> int:
        """GPUs in use."""
        return sum(each.gpus for each in self.instances)


def energy_figures(
    record: RunRecord,
    cluster: ClusterPower | None,
    duration_s: float,
    span_s: Floats,
    totals: dict[str, Any],
) -> dict[str, Any]:
    """Return the figures of a replication; none where nothing is known about the GPUs.

    Args:
        record: the run.
        cluster: its power; None: unknown.
        duration_s: of the run, seconds.
        span_s: how long each row of the step log lasts, seconds.
        totals: `completed`, `total_output_tokens` and `total_input_tokens` of the run.
    """
    if cluster is None:
        return {}
    by_phase = phase_energy_j(record.steps, cluster, span_s)
    idle_j = idle_energy_j(record, cluster, duration_s, span_s)
    gpu_j = idle_j + sum(by_phase.values())
    node_j = gpu_j + cluster.host_w * duration_s
    seconds = duration_s or np.nan
    output = totals["total_output_tokens"]
    counts = {
        "request": totals["completed"],
        "output_token": output,
        "token": output + totals["total_input_tokens"],
    }
    figures: dict[str, Any] = {"gpu_energy_j": gpu_j, "gpu_energy_idle_j": idle_j}
    figures |= {f"gpu_energy_{phase}_j": energy for phase, energy in by_phase.items()}
    figures |= {f"gpu_energy_j_per_{what}": gpu_j / (n or np.nan) for what, n in counts.items()}
    figures["gpu_power_w"] = gpu_j / seconds
    figures["gpu_power_w_per_gpu"] = gpu_j / seconds / cluster.gpus
    figures["node_energy_j"] = node_j
    figures["node_energy_kwh"] = node_j / J_PER_KWH
    figures |= {f"node_energy_j_per_{what}": node_j / (n or np.nan) for what, n in counts.items()}
    figures["node_power_w"] = node_j / seconds
    figures["provisioned_power_w"] = cluster.rating_w
    if cluster.carbon_g_per_kwh is not None:
        figures["carbon_g"] = node_j / J_PER_KWH * cluster.carbon_g_per_kwh
    if cluster.price_per_kwh is not None:
        figures["energy_cost"] = node_j / J_PER_KWH * cluster.price_per_kwh
    return figures


def phase_energy_j(rows: Rows, cluster: ClusterPower, span_s: Floats) -> dict[str, float]:
    """Return the joules of the GPUs in steps that prefill, decode, and do both."""
    alike: dict[InstancePower, list[int]] = {}
    for id, instance in enumerate(cluster.instances):
        alike.setdefault(instance, []).append(id)
    energy = np.zeros(len(rows))
    for instance, ids in alike.items():
        mine: Any = slice(None) if len(alike) == 1 else np.isin(rows["instance"], ids)
        energy[mine] = row_energy_j(rows[mine], cluster.model, instance, span_s[mine])
    sums = np.bincount(PHASE_OF_KIND[rows["kind"]], energy, len(PHASES))
    return dict(zip(PHASES, sums.tolist(), strict=True))


def idle_energy_j(
    record: RunRecord, cluster: ClusterPower, duration_s: float, span_s: Floats
) -> float:
    """Return the joules of the GPUs while they run nothing and are not down."""
    rows = record.steps
    down = np.zeros(len(cluster.instances))
    for outage in record.outages:
        down[outage.instance] += max(min(outage.end_s, duration_s) - outage.start_s, 0.0)
    busy = np.bincount(rows["instance"], span_s, len(cluster.instances))
    total = 0.0
    for instance, busy_s, down_s in zip(cluster.instances, busy.tolist(), down, strict=True):
        up_s = max(duration_s - float(down_s), 0.0)
        idle_s = max(instance.gpus * up_s - instance.busy_gpus * busy_s, 0.0)
        total += instance.power.idle_w * idle_s
    return total


def row_energy_j(rows: Rows, model: PowerModel, instance: InstancePower, span_s: Floats) -> Floats:
    """Return the joules of the busy GPUs of an instance in each row of its steps."""
    if model in ("phase", "logistic"):
        return instance.busy_gpus * span_s * _watts_by_batch(rows, model, instance.power)
    energy = np.zeros(len(rows))
    for at in _pieces(rows["n_steps"]):
        joules, row = _step_energy_j(rows[at], model, instance)
        energy[at] = np.bincount(row, joules, len(rows[at]))
    return instance.busy_gpus * energy


def _watts_by_batch(rows: Rows, model: PowerModel, power: GpuPower) -> Floats:
    chunk = rows["padded_tokens"].astype(np.float64)
    return power.by_batch(model, chunk, rows["decode_requests"].astype(np.float64))


def _pieces(counts: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of rows with about `PIECE_STEPS` steps each, one row at least."""
    ends = np.cumsum(counts, dtype=np.int64)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + PIECE_STEPS, side="right"))
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop


def _step_energy_j(
    rows: Rows, model: PowerModel, instance: InstancePower
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the joules of one GPU in every single step, and which row each is from.

    In step k (from 0) of a row of B decodes that found K cached tokens, K + k*B are cached.
    """
    counts = rows["n_steps"].astype(np.int64)
    row = np.repeat(np.arange(len(rows)), counts)
    k = (np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.float64)
    seconds = ((rows["first_fs"] / FS_PER_S)[row]) + k * (rows["increment_fs"] / FS_PER_S)[row]
    batch = rows["decode_requests"].astype(np.float64)
    chunk = rows["padded_tokens"].astype(np.float64)
    prompts = rows["prefill_requests"].astype(np.float64)
    tokens = chunk + batch
    kv = rows["kv_tokens"].astype(np.float64)
    # Keys that each of equally long prompts looks at: 1 + 2 + ... + its length.
    looks = chunk * (chunk / np.maximum(prompts, 1.0) + 1.0) / 2
    looks += np.where(batch > 0, kv + batch, 0.0)
    flops = tokens * instance.token_flops + (prompts + batch) * instance.row_flops
    flops += looks * instance.pair_flops
    moved = instance.weight_bytes + (kv + tokens) * instance.kv_token_bytes
    flops_k = flops[row] + k * (batch * instance.pair_flops)[row]
    moved_k = moved[row] + k * (batch * instance.kv_token_bytes)[row]
    watts = instance.power.by_work(
        model,
        flops_k / (seconds * instance.peak_flops_per_s),
        moved_k / (seconds * instance.bandwidth_bytes_per_s),
    )
    return watts * seconds, row
