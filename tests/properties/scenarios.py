"""Random runs, each a function of a seed and the name of a policy.

Half of the seeds have round costs and arrivals, so that events coincide; memory reaches from one
request to ample. A policy added to `policies/` needs no edit here (see `random_configs`).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any, cast

import numpy as np
from chaos import Chaos
from knotted import KnottedCost
from planned import FirstOutages, PlannedOutages
from pydantic import BaseModel
from random_configs import random_config

import policies
from sim.core.inbox import check_ahead
from sim.core.outages import ExponentialOutages, Outages
from sim.core.predictors import make_predictor
from sim.core.routers import ROUTERS
from sim.core.spec import InstanceSpec, Settings
from sim.costs.build import instance_cost
from sim.costs.model import StepCost
from sim.costs.simple import AffineCost
from sim.types import BadInput, CostModel, Policy, Trace, to_fs
from sim.types.policy import ClusterInfo

BLOCK_SIZES = (1, 4, 16)
MAX_GPUS = 4
EXACT_UNITS_S = (0.25, 2**-6, 1.0)
ROUND_UNITS_S = (0.25, 0.01, 0.05, 1.0)
"""Exact and decimal ones: 0.01 s is no binary fraction, so float time would lose coincidences."""
ANY_ROUTER = [name for name in ROUTERS if name != "prefix"]
PROFILES = (
    ("opt-13b", "a100-80gb", 1, "distserve"),
    ("opt-13b", "a100-80gb", 2, "distserve"),
    ("llama-2-13b", "a100-40gb", 1, "auto"),
)
DUMMY_LEN = 10**7
"""A prompt no instance takes."""


def policy_names() -> list[str]:
    """Return every registered policy and the tests' own, which uses every kind of plan."""
    return [*policies.names(), Chaos.name]


def policy_class(name: str) -> type[Policy]:
    """Return the class of a policy."""
    return Chaos if name == Chaos.name else policies.load(name)


@dataclass(frozen=True)
class Scenario:
    """One run, ready to be made as often as wanted.

    Attributes:
        policy: name of the policy.
        config: its parameters.
        trace: the requests.
        specs: the instances.
        options: of the engine (`Settings`), `fuse_steps` left out.
        unit_s: time scale.
    """

    policy: str
    config: BaseModel
    trace: Trace
    specs: list[InstanceSpec]
    options: dict[str, Any]
    unit_s: float

    def new_policy(self, cls: type[Policy] | None = None) -> Policy:
        """Return a fresh policy, of `cls` if given."""
        make = cast(Callable[[BaseModel], Policy], cls or policy_class(self.policy))
        return make(self.config)

    def settings(self, fuse: bool = True) -> Settings:
        """Return the settings of the engine; a predictor draws, so each run gets its own."""
        options = dict(self.options)
        name = options.pop("predictor")
        seed, mean = options["router_seed"], float(self.trace.output_len.mean())
        options["predictor"] = make_predictor(name, seed, accuracy=0.7, tokens=20, mean_tokens=mean)
        return Settings(fuse_steps=fuse, **options)

    @property
    def split(self) -> bool:
        """Whether prefill and decode have pools of their own."""
        return any(spec.role == "decode" for spec in self.specs)

    def but(self, **changes: Any) -> Scenario:
        """Return a copy with other attributes."""
        return replace(self, **changes)


def scenario(seed: int, policy: str, exact: bool = False) -> Scenario:
    """Return the run of `seed`.

    Args:
        seed: any integer; even ones have round costs and arrivals.
        policy: name of the policy.
        exact: all times are multiples of 2**-15 s, which floats and femtoseconds both hold exactly.
    """
    rng = Random(f"{policy}/{seed}")
    is_round = exact or seed % 2 == 0
    unit_s = rng.choice(EXACT_UNITS_S if exact else ROUND_UNITS_S)
    costs = _costs(rng, unit_s, is_round, exact)
    block_size = rng.choice(BLOCK_SIZES)
    options = _options(rng, unit_s)
    if not exact and Random(f"links/{policy}/{seed}").random() < 0.25:
        options |= {"link_bytes_per_s": float("inf"), "link_latency_s": 0.0}
    if exact and options.get("think_s") == 0:
        options["think_s"] = unit_s  # no pause takes a femtosecond, which is no multiple
    # Late enough, in some, that a float no longer holds every femtosecond.
    late_s = unit_s * rng.choice([0, 0, 0, 1000 if is_round else 777.7])
    if options["horizon_s"] is not None:
        options["horizon_s"] += late_s
    trace = _trace(rng, unit_s, is_round, block_size, late_s)
    if "concurrency" in options and rng.random() < 0.5:
        trace = replace(trace, arrival_s=None)
    config = random_config(policy_class(policy).Config, rng, unit_s, policy)
    made = Scenario(policy, config, trace, [], options, unit_s)
    made = made.but(specs=_specs(rng, made, costs, block_size))
    options["outages"] = _outages(Random(f"failures/{policy}/{seed}"), made, late_s, exact)
    return _with_prefixes(Random(f"prefixes/{policy}/{seed}"), made, block_size)


def ahead(seed: int, policy: str) -> Scenario | None:
    """Return the run of `seed` with steps formed one ahead; None if they cannot be."""
    made = scenario(seed, policy)
    rng = Random(f"ahead/{policy}/{seed}")
    specs = [copy(spec) for spec in made.specs]
    for spec in specs:
        spec.role = "mixed"
    config = made.config
    if policy == Chaos.name:
        config = config.model_copy(update={"static_when_idle": False, "queue": "instance"})
    options = made.options | {
        "async_scheduling": True,
        "reserve_full_isl": rng.random() < 0.5,
        "first_step_s": made.unit_s * rng.choice([0, 0, 3]),
    }
    made = made.but(specs=specs, config=config, options=options)
    try:
        check_ahead(made.new_policy(), specs)
    except BadInput:
        return None
    return made


# -- parts ----------------------------------------------------------------------------------------


def _costs(rng: Random, unit_s: float, is_round: bool, exact: bool) -> list[CostModel]:
    """Return the price lists of the instances to choose from: mostly one for all."""
    kind = rng.choice(["affine", "affine", "knotted"] + ([] if exact else ["profile"]))
    count = rng.choice([1, 1, 1, 2])
    if kind == "affine":
        return [_affine(rng, unit_s, is_round, exact) for _ in range(count)]
    if kind == "knotted":
        unit_fs = to_fs(unit_s) // 4 if is_round else int(rng.random() * to_fs(unit_s)) + 8
        knots = rng.choice([(37, 150), (5, 20), (64, 65), (200, 900)])
        return [KnottedCost(unit_fs * (i + 1), knots) for i in range(count)]
    return [_profiled(*rng.choice(PROFILES), rng.choice([False, True])) for _ in range(count)]


def _affine(rng: Random, unit_s: float, is_round: bool, exact: bool) -> AffineCost:
    if not is_round:
        scales = [0.5, 0.02, 1.0, 0.05, 0.002]
        return AffineCost(*[rng.random() * scale * unit_s for scale in scales])
    part_s = unit_s / 8
    return AffineCost(
        # A free prefill lasts a femtosecond, which is no multiple of anything.
        rng.choice([part_s if exact else 0.0, part_s, unit_s]),
        rng.choice([0.0, 0.0, part_s]),
        rng.choice([part_s, unit_s, 2 * unit_s]),
        rng.choice([0.0, part_s]),
        rng.choice([0.0, 0.0, part_s]),
    )


@cache
def _profiled(model: str, gpu: str, tp: int, name: str, floored: bool) -> StepCost:
    """Return a shipped profile, with a floor that batches of the tests rise above or without."""
    floor_s = 0.0
    if floored:
        piece = _profiled(model, gpu, tp, name, False).decode(3)
        floor_s = (piece.base_fs + 150 * piece.slope_fs) / 1e15
    return instance_cost(model, gpu, tp, profile_name=name, min_step_s=floor_s).cost


def _options(rng: Random, unit_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "padding": rng.choice(["policy", "policy", "none", "batch"]),
        "router": rng.choice(ANY_ROUTER),
        "router_seed": rng.randint(0, 9),
        "abort_after_s": _maybe(rng, 0.25, [2, 10, 50], unit_s),
        "horizon_s": _maybe(rng, 0.25, [5, 20, 60, 200], unit_s),
        "oom_restart_s": unit_s * rng.choice([1, 10]),
        "decode_router": rng.choice(ANY_ROUTER),
        "link_bytes_per_s": rng.choice([50, 1000]) / unit_s,
        # Shares of a link are no whole femtoseconds: latencies of their own keep ties apart.
        "link_latency_s": unit_s * rng.choice([0.0723, 0.7219]),
        "link_shared": rng.random() < 0.5,
        "link_overlap": rng.choice([0.0, 0.5]),
        "first_token": rng.choice(["prefill", "prefill", "decode"]),
        "ttft_slo_s": [unit_s * n for n in [rng.choice([3, 10, 50])]] if rng.random() < 0.6 else [],
        "e2e_slo_s": [unit_s * n for n in [rng.choice([20, 100])]] if rng.random() < 0.5 else [],
        "predictor": rng.choice(["none", "oracle", "class", "constant", "mean"]),
    }
    if rng.random() < 0.2:
        options["concurrency"] = rng.choice([1, 3, 10])
        options["think_s"] = unit_s * rng.choice([0, 0.5, 2])
    return options


def _outages(rng: Random, made: Scenario, late_s: float, exact: bool) -> Outages | None:
    """Return no failures for most runs; planned ones coincide with other events."""
    if rng.random() < 0.7:
        return None
    unit_s, engines = made.unit_s, len(made.specs)
    if not exact and rng.random() < 0.5:
        mtbf_s, repair_s = (unit_s * rng.choice(units) for units in ([50, 200], [1, 20]))
        return FirstOutages(ExponentialOutages(mtbf_s, repair_s, rng.randint(0, 9)), 10)
    plan: list[list[tuple[int, int]]] = []
    for _ in range(engines):
        at, one = late_s, []
        for _ in range(rng.choice([0, 1, 1, 3])):
            down_s = at + unit_s * rng.choice([0, 1, 3, rng.randint(1, 60)])
            at = down_s + unit_s * rng.choice([1, 4, 30])
            one.append((to_fs(down_s), to_fs(at)))
            at += unit_s
        plan.append(one)
    return PlannedOutages(plan)


def _with_prefixes(rng: Random, made: Scenario, block_size: int) -> Scenario:
    """Return half of the runs with prefix caching; most of those share prefixes."""
    options = made.options | {"enable_prefix_caching": rng.random() < 0.5}
    if not options["enable_prefix_caching"]:
        return made.but(options=options)
    if rng.random() < 0.3:
        options |= {"router": "prefix"}
    trace, prompts = made.trace, made.trace.input_len.tolist()
    kind = rng.choice(["groups", "groups", "hashes", "nothing"])
    if kind == "groups":
        group = [rng.choice([-1, 0, 0, 1, 2]) for _ in prompts]
        longest = rng.choice([block_size, 20, 60])
        shared = [rng.choice([0, longest, longest, rng.randint(0, longest)]) for _ in prompts]
        trace = replace(trace, prefix_group=np.array(group), prefix_len=np.array(shared))
    if kind == "hashes":
        size = rng.choice([1, 3, block_size, 8])
        turns = rng.choice([1, 2, 5])
        lists = []
        for row, tokens in enumerate(prompts):
            user, count = row % 3, rng.randint(0, -(-tokens // size))
            lists.append(tuple(user * 1000 + at // turns * turns + at for at in range(count)))
        trace = replace(trace, block_hashes=tuple(lists), hash_block_tokens=size)
    return made.but(trace=trace, options=options)


def _maybe(rng: Random, chance: float, units: list[int], unit_s: float) -> float | None:
    return rng.choice(units) * unit_s if rng.random() < chance else None


def _trace(rng: Random, unit_s: float, is_round: bool, block_size: int, late_s: float) -> Trace:
    count = rng.choice([1, 5, 20, 40, 40, 60, 60])
    longest = rng.choice([20, 60])
    inputs = [rng.choice([block_size, 1, *[rng.randint(1, longest)] * 4]) for _ in range(count)]
    outputs = [rng.choice([1, 2, *[rng.randint(1, 50)] * 4]) for _ in range(count)]
    span = rng.choice([0, 10, 30, 100, 400])
    units = [rng.randint(0, span) if is_round else rng.random() * span for _ in range(count)]
    arrival_s = np.sort(late_s + unit_s * np.array(units, dtype=np.float64))
    priority = [rng.randint(0, 2) for _ in range(count)]
    task = [rng.randint(0, 1) for _ in range(count)]
    return Trace(
        np.array(inputs, dtype=np.int64),
        np.array(outputs, dtype=np.int64),
        arrival_s,
        priority=np.array(priority, dtype=np.int64) if rng.random() < 0.3 else None,
        task=np.array(task, dtype=np.int64) if rng.random() < 0.3 else None,
        tasks=("online", "offline"),
    )


def _specs(
    rng: Random, made: Scenario, costs: list[CostModel], block_size: int
) -> list[InstanceSpec]:
    tokens = int((made.trace.input_len + made.trace.output_len - 1).max())
    largest = -(-tokens // block_size)
    # One request, two, a few, ample; now and then too little for the largest.
    choices = [largest, largest + 2, largest * 3 // 2, largest * 2, largest * 3]
    blocks = rng.choice([*choices, *choices, largest * 40, max(1, largest * 2 // 3)])
    model_len = max(2, tokens * 3 // 4) if rng.random() < 0.1 else 1 << 40
    swap = rng.choice([0, max(1, blocks // 3), blocks, blocks * 3])
    swap_s = made.unit_s * rng.choice([0, 0.125, 1])
    step_tokens = rng.choice([0, 0, 0, rng.randint(8, 200)])
    uneven = rng.random() < 0.25
    token_bytes = rng.choice([0, 1, 7])
    roles = _roles(rng, made)
    return [
        InstanceSpec(
            costs[i % len(costs)],
            blocks + (rng.randint(0, largest) if uneven else 0),
            block_size,
            role=role,
            max_model_len=model_len,
            total_swap_blocks=swap,
            swap_s_per_block=swap_s,
            max_step_tokens=step_tokens,
            kv_token_bytes=token_bytes,
        )
        for i, role in enumerate(roles)
    ]


def _roles(rng: Random, made: Scenario) -> list[str]:
    """Return the roles of the policy's own layout on 1 to 4 GPUs."""
    policy = made.new_policy()
    for gpus in [rng.choice([1, 1, 2, 3, 4]), MAX_GPUS, 2 * MAX_GPUS]:
        pools = policy.pools(ClusterInfo(gpus, 1))
        roles = [pool.role for pool in pools for _ in range(pool.instances)]
        if roles:
            return roles
    raise AssertionError(f"policy {made.policy!r} lays out no instances on {2 * MAX_GPUS} GPUs")
