"""Which GPU holds which layers: the dynamic programme of UELLM's deployer (HELR, HE, LR).

Layers run one after another and each GPU holds one run of consecutive layers, so a layout is a
sequence of stages. Its latency is the sum of the stages' compute times and of the transfers between
neighbouring stages; one GPU works at a time, there is no pipelining. Recurrence (layers j..i-1 on
GPU g, each GPU used once)::

    f[i][g] = min over j < i, g'  of  f[j][g'] + compute(j..i-1 on g) + transfer(g' -> g)

subject to the bytes of the layers fitting the GPU. "Used once" makes the set of used GPUs part of
the state; GPUs that can be swapped without changing the topology are used in order, so identical
GPUs cost no extra states.

Reference: He et al., "UELLM", ICSOC 2024, arXiv:2409.14961. The authors' code holds two fixed layer
maps and no programme: this one is a reconstruction from the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sim.types import N


@dataclass(frozen=True)
class Gpu:
    """A GPU as the deployer sees it.

    Attributes:
        memory_bytes: what weights and KV reserve may take.
        layer_s: seconds a layer of unit work takes.
    """

    memory_bytes: float
    layer_s: float


@dataclass(frozen=True)
class Topology:
    """GPUs and the links between them.

    Attributes:
        gpus: the GPUs.
        transfer_s: `transfer_s[a][b]`: seconds to hand the activations of a step from a to b.
    """

    gpus: Sequence[Gpu]
    transfer_s: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Layers:
    """The layers of a model, in order.

    Attributes:
        bytes: weights and KV reserve of each layer.
        work: how much longer than a unit layer each takes.
    """

    bytes: Sequence[float]
    work: Sequence[float]


@dataclass(frozen=True)
class Stage:
    """Layers `first` to `end` - 1 on GPU `gpu`."""

    gpu: N
    first: N
    end: N


@dataclass(frozen=True)
class Layout:
    """Stages in order, and the seconds a step of the reference batch takes over all of them."""

    stages: Sequence[Stage]
    latency_s: float


State = tuple[N, N]
"""The set of used GPUs as a bit mask, and the last of them."""

Entry = tuple[float, N, State]
"""Latency so far, the first layer of the last stage, and the state before it."""

START: State = (0, -1)


def uniform(gpus: N, memory_bytes: float, layer_s: float, transfer_s: float) -> Topology:
    """Return `gpus` equal GPUs, every pair joined by an equal link."""
    return Topology([Gpu(memory_bytes, layer_s)] * gpus, [[transfer_s] * gpus] * gpus)


def equal_gpus(
    gpus: N, gpu_bytes: float, layers: N, layer_bytes: float, layer_s: float, transfer_s: float
) -> dict[N, Layout]:
    """Return `best_layouts` of equal layers on equal GPUs, every pair joined by an equal link.

    Args:
        gpus: number of GPUs.
        gpu_bytes: what weights and KV reserve may take on each.
        layers: number of layers.
        layer_bytes: weights and KV reserve of each.
        layer_s: seconds each takes in a step of the reference batch.
        transfer_s: seconds to hand the activations of that step to another GPU.
    """
    model = Layers([layer_bytes] * layers, [1.0] * layers)
    return best_layouts(model, uniform(gpus, gpu_bytes, layer_s, transfer_s))


def best_layouts(layers: Layers, topology: Topology) -> dict[N, Layout]:
    """Return the layout of least latency for each number of GPUs on which the layers fit.

    Complexity: O(S * G * L^2) for L layers and G GPUs in S reachable states: S <= G for equal GPUs
    and links, G * 2^G when no two are alike.
    """
    count = len(layers.bytes)
    bytes_to = [0.0, *accumulate(layers.bytes)]
    work_to = [0.0, *accumulate(layers.work)]
    reached: list[dict[State, Entry]] = [{} for _ in range(count + 1)]
    reached[0][START] = (0.0, 0, START)
    twins = _twins(topology)
    for first in range(count):
        for (used, last), (latency_s, _, _) in reached[first].items():
            for g, gpu in enumerate(topology.gpus):
                if used >> g & 1 or (twins[g] >= 0 and not used >> twins[g] & 1):
                    continue
                state = (used | 1 << g, g)
                before_s = latency_s + (topology.transfer_s[last][g] if last >= 0 else 0.0)
                for end in range(first + 1, count + 1):
                    if bytes_to[end] - bytes_to[first] > gpu.memory_bytes:
                        break
                    total_s = before_s + gpu.layer_s * (work_to[end] - work_to[first])
                    known = reached[end].get(state)
                    if known is None or total_s < known[0]:
                        reached[end][state] = (total_s, first, (used, last))
    return _best_by_count(reached)


def choose(
    layouts: Mapping[N, Layout], objective: str, slack: float = 0.05, mu_s: float | None = None
) -> Layout:
    """Return the layout an objective prefers.

    Args:
        layouts: the fastest one for each number of GPUs; not empty.
        objective: `he` (fewest GPUs), `lr` (least latency, then fewest GPUs) or `helr` (both).
        slack: `helr` without `mu_s`: fewest GPUs whose latency is within this share of the least.
        mu_s: `helr`: seconds of latency that a GPU is worth, so that latency + mu_s * GPUs decides.
    """
    counts = sorted(layouts)
    if objective == "he":
        return layouts[counts[0]]
    if objective == "helr" and mu_s is not None:
        return layouts[min(counts, key=lambda k: layouts[k].latency_s + mu_s * k)]
    least_s = min(layout.latency_s for layout in layouts.values())
    if objective == "helr":
        least_s *= 1 + slack
    return layouts[next(k for k in counts if layouts[k].latency_s <= least_s)]


def _best_by_count(reached: list[dict[State, Entry]]) -> dict[N, Layout]:
    """Pick the fastest final state of each number of GPUs and follow it back."""
    finals: dict[N, State] = {}
    last = reached[-1]
    for state, (latency_s, _, _) in last.items():
        count = state[0].bit_count()
        if count not in finals or latency_s < last[finals[count]][0]:
            finals[count] = state
    return {n: Layout(_stages(reached, finals[n]), last[finals[n]][0]) for n in sorted(finals)}


def _stages(reached: list[dict[State, Entry]], state: State) -> list[Stage]:
    stages: list[Stage] = []
    end = len(reached) - 1
    while end:
        _, first, before = reached[end][state]
        stages.append(Stage(state[1], first, end))
        end, state = first, before
    return stages[::-1]


def _twins(topology: Topology) -> list[N]:
    """Return for each GPU the last one before it that it can change places with; -1: none."""
    count = len(topology.gpus)
    return [
        next((a for a in range(b - 1, -1, -1) if _interchangeable(topology, a, b)), -1)
        for b in range(count)
    ]


def _interchangeable(topology: Topology, a: N, b: N) -> bool:
    if topology.gpus[a] != topology.gpus[b]:
        return False
    times = topology.transfer_s
    if times[a][b] != times[b][a]:
        return False
    others = [c for c in range(len(topology.gpus)) if c not in (a, b)]
    return all(times[a][c] == times[b][c] and times[c][a] == times[c][b] for c in others)
