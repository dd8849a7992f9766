"""Keys of a config that somebody set and that change nothing: what to say about them.

A rule says of some keys where they are heeded. A key is told where it was set to another value
than its default, or its preset's, and its rule says no. Keys that no rule names are heeded
everywhere, or what they do shows in a run only (`engine.padding`, `engine.enable_prefix_caching`).
What a policy of somebody else's reads is not known: where that matters, its keys count as heeded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sim.costs.catalogue import gpu_named, model_named
from sim.costs.memory import GPU_MEMORY_UTILIZATION, min_tp
from sim.costs.power import power_of
from sim.study.config import (
    EngineConfig,
    Experiment,
    PowerConfig,
    SloBounds,
    SpeculativeConfig,
)
from sim.study.presets import preset_named
from sim.study.speculative import STATIC
from sim.study.validation import shown
from sim.types import Policy
from workloads.lengths.parametric import PARAMETRIC
from workloads.sources import is_file

if TYPE_CHECKING:
    from sim.study.build import InstanceInfo

OURS = "policies"
"""Package of the policies whose reading is known."""

RESERVES = ("continuous",)
"""Policies of ours that read `View.reserve_full_isl`, under vLLM's V1 scheduler."""


@dataclass(frozen=True)
class Case:
    """A policy on a cluster.

    Attributes:
        experiment: what was asked for.
        policy: the decisions.
        instances: by id.
    """

    experiment: Experiment
    policy: Policy
    instances: Sequence[InstanceInfo]

    @property
    def engine(self) -> EngineConfig:
        """The section of that name."""
        return self.experiment.engine

    @property
    def speculative(self) -> SpeculativeConfig:
        """The section of that name; it was given."""
        assert self.experiment.speculative is not None
        return self.experiment.speculative

    @property
    def power(self) -> PowerConfig:
        """The section of that name; it was given."""
        assert self.experiment.power is not None
        return self.experiment.power

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the workload's source and of its components."""
        workload = self.experiment.workload
        return (workload.source, *(workload.mixture or ()))

    @property
    def ours(self) -> bool:
        """Whether it is known what the policy reads."""
        return type(self.policy).__module__.partition(".")[0] == OURS

    @property
    def moves(self) -> bool:
        """Whether KV caches move from instance to instance."""
        split = any(i.spec.role != "mixed" for i in self.instances)
        return split or self.policy.places_decode

    @property
    def reads_prefixes(self) -> bool:
        """Whether anybody looks at what prompts share."""
        return self.engine.enable_prefix_caching or self.engine.router == "prefix"

    def overrides(self, method: str) -> bool:
        """Whether the policy has a method of its own."""
        return getattr(type(self.policy), method) is not getattr(Policy, method)

    def routed(self, decodes: bool) -> bool:
        """Whether a router of the engine has a choice."""
        found = [i for i in self.instances if (i.spec.role == "decode") == decodes]
        if len(found) < 2 or (self.policy.queue_scope == "cluster" and not decodes):
            return False
        return not (self.ours and self.overrides("route"))


@dataclass(frozen=True)
class Rule:
    """Where some keys are heeded.

    Attributes:
        keys: dotted; a section stands for all in it.
        heeded: whether they change anything.
        because: why not, the end of a sentence.
    """

    keys: tuple[str, ...]
    heeded: Callable[[Case], bool]
    because: str


def _swaps(case: Case) -> bool:
    """Whether requests may be swapped out; what `victim` answers is known of some policies only."""
    policy = case.policy
    if policy.synchronous == STATIC or not case.overrides("victim"):
        return False
    return bool(getattr(policy, "swap", True)) or not case.ours


def _sizes_by_memory(case: Case) -> bool:
    """Whether the share of the memory decides on KV blocks or on the layout."""
    cluster, engine = case.experiment.cluster, case.engine
    if any(i.costs.kv_guessed for i in case.instances):
        return True
    if cluster.pools is not None:
        return False
    model, gpu = model_named(cluster.model), gpu_named(cluster.gpu)
    length = case.instances[0].costs.max_model_len
    usual, given = (
        min_tp(model, gpu, max_model_len=length, gpu_memory_utilization=share)
        for share in (GPU_MEMORY_UTILIZATION, engine.gpu_memory_utilization)
    )
    return usual != given or case.overrides("pools")


def _drafts_none_somewhere(case: Case) -> bool:
    config = case.speculative
    chosen = config.control == "goodput" or config.method == "drafter_pool"
    return chosen or 0 in config.table().values()


def _caps(case: Case) -> bool:
    cap_w = case.power.cap_w
    gpus = {case.power.gpu or i.gpu for i in case.instances}
    return cap_w is not None and any(cap_w < power_of(gpu).tdp_w for gpu in gpus)


def _has_bounds(case: Case) -> bool:
    slo = case.experiment.slo
    bounds = (slo, *slo.by.values())
    return any(getattr(of, key) is not None for of in bounds for key in SloBounds.model_fields)


_OF_DRAFTS = tuple(
    f"speculative.{key}"
    for key in SpeculativeConfig.model_fields
    if key not in ("method", "num_speculative_tokens")
)

RULES = (
    Rule(
        ("cluster.profile",),
        lambda case: any(i.pool.profile is None for i in case.instances),
        "every pool names its own",
    ),
    Rule(
        ("cluster.link.latency_ms", "cluster.link.shared", "cluster.link.overlap"),
        lambda case: case.moves,
        "no KV cache moves: there are no prefill and decode instances",
    ),
    Rule(
        ("cluster.link.name", "cluster.link.gb_per_s"),
        # a policy's own layout may look at the bandwidth
        lambda case: (
            case.moves or (case.experiment.cluster.pools is None and case.overrides("pools"))
        ),
        "no KV cache moves: there are no prefill and decode instances",
    ),
    Rule(
        ("cluster.link.name",),
        lambda case: case.experiment.cluster.link.gb_per_s is None,
        "cluster.link.gb_per_s is the bandwidth",
    ),
    Rule(
        ("cluster.link.shared",),
        lambda case: len(case.instances) > 2 or case.policy.places_decode,
        "there is one pair of instances, so one link",
    ),
    Rule(
        ("workload.input_len", "workload.output_len"),
        lambda case: any(name in PARAMETRIC for name in case.sources),
        f"lengths are the source's own; they are for {', '.join(PARAMETRIC)}",
    ),
    Rule(
        ("workload.overlong",),
        lambda case: case.experiment.workload.max_model_len is not None,
        "nothing is over workload.max_model_len, which is not set",
    ),
    Rule(
        ("workload.format", "workload.tokenizer", "workload.max_rows"),
        lambda case: any(is_file(name) for name in case.sources),
        "no trace file is read",
    ),
    Rule(
        ("workload.prefix_blocks", "workload.hash_block_tokens"),
        lambda case: case.reads_prefixes,
        "nobody looks for shared prefixes without engine.enable_prefix_caching or router: prefix",
    ),
    Rule(
        ("workload.shared_prefix.groups",),
        # with a smaller share other draws decide who has a prefix
        lambda case: case.reads_prefixes or _share_of_prefixes(case) < 1,
        "nobody looks for shared prefixes without engine.enable_prefix_caching or router: prefix",
    ),
    Rule(("slo.scale",), _has_bounds, "slo sets no bound"),
    Rule(
        ("engine.attention",),
        lambda case: case.engine.attention != "balanced" or not case.engine.async_scheduling,
        "async_scheduling hides the plan of balanced attention, which else is as fitted",
    ),
    Rule(
        ("engine.attention_ctas_per_sm",),
        lambda case: case.engine.attention == "ragged",
        "only for attention: ragged",
    ),
    Rule(
        ("engine.attention_plan_ms",),
        lambda case: case.engine.attention == "balanced" and not case.engine.async_scheduling,
        "only for attention: balanced without async_scheduling",
    ),
    Rule(
        ("engine.scheduler_reserve_full_isl",),
        lambda case: (
            not case.ours or (case.policy.name in RESERVES and not case.policy.synchronous)
        ),
        "only for policy continuous with scheduler v1; others admit a prompt if all of it fits",
    ),
    Rule(
        ("engine.router",),
        lambda case: case.routed(False),
        "no router chooses: one instance takes all arrivals, they share a queue, or the policy "
        "chooses",
    ),
    Rule(
        ("engine.prefix_routing",),
        lambda case: case.engine.router == "prefix" and case.routed(False),
        "only for router: prefix, where that chooses",
    ),
    Rule(
        ("engine.decode_router",),
        lambda case: case.routed(True),
        "no router chooses: there are no several decode instances, or the policy chooses",
    ),
    Rule(
        ("engine.first_token",),
        lambda case: case.moves,
        "prefill and decode are on one instance",
    ),
    Rule(
        ("engine.pipeline",),
        lambda case: any(i.pool.pp > 1 and not i.pool.sequential for i in case.instances),
        "there are no pipeline stages to share (pp > 1)",
    ),
    Rule(
        ("engine.predictor",),
        lambda case: case.policy.uses_predictions,
        "the policy asks for no predicted lengths",
    ),
    Rule(
        ("engine.predictor.accuracy",),
        lambda case: case.engine.predictor.name == "class",
        "only for predictor.name: class",
    ),
    Rule(
        ("engine.predictor.tokens",),
        lambda case: case.engine.predictor.name == "constant",
        "only for predictor.name: constant",
    ),
    Rule(
        ("engine.swap_space_gib", "engine.swap_gb_per_s"),
        _swaps,
        "the policy swaps nothing out: what it evicts is recomputed",
    ),
    Rule(
        ("engine.swap_gb_per_s",),
        lambda case: case.engine.swap_space_gib > 0,
        "engine.swap_space_gib is 0",
    ),
    Rule(
        ("engine.oom_restart_s",),
        lambda case: case.policy.synchronous == STATIC or not case.ours,
        "only static batches run out of memory",
    ),
    Rule(
        ("engine.gpu_memory_utilization",),
        _sizes_by_memory,
        "the profile or engine.num_gpu_blocks says how many KV blocks there are",
    ),
    Rule(
        _OF_DRAFTS,
        lambda case: case.speculative.num_speculative_tokens > 0,
        "speculative.num_speculative_tokens is 0",
    ),
    Rule(
        ("speculative.window", "speculative.prior_rate"),
        lambda case: case.speculative.control == "goodput",
        "only for control: goodput",
    ),
    Rule(
        ("speculative.profile",),
        lambda case: case.speculative.method == "draft_model",
        "only for method: draft_model",
    ),
    Rule(
        ("speculative.network_ms",),
        lambda case: (
            case.speculative.placement == "pool" or case.speculative.method == "drafter_pool"
        ),
        "only for placement: pool and method: drafter_pool",
    ),
    Rule(
        ("speculative.draft_at_zero",),
        _drafts_none_somewhere,
        "there are no steps without drafts",
    ),
    Rule(
        ("speculative.acceptance.data",),
        lambda case: case.speculative.acceptance.model == "published",
        "only for acceptance.model: published",
    ),
    Rule(
        ("speculative.acceptance.request_sd",),
        lambda case: case.speculative.acceptance.model != "trace",
        "with acceptance.model: trace the file has every request's own",
    ),
    Rule(
        ("power.cap_w",),
        _caps,
        "no GPU here may draw as much",
    ),
)


def _share_of_prefixes(case: Case) -> float:
    prefix = case.experiment.workload.shared_prefix
    return 1.0 if prefix is None else prefix.share


def idle_notes(
    experiment: Experiment, policy: Policy, instances: Sequence[InstanceInfo]
) -> list[str]:
    """Return a line for each reason why keys that were set change nothing."""
    given = _given(experiment)
    case = Case(experiment, policy, instances)
    why: dict[str, str] = {}
    for rule in RULES:
        keys = [key for key in rule.keys if key in given and not _told(key, why)]
        keys = [key for key in keys if not _usual(experiment, key)]
        if keys and not rule.heeded(case):
            why |= dict.fromkeys(keys, rule.because)
    lines = []
    for because in dict.fromkeys(why.values()):
        each = [_shown(experiment, key) for key in why if why[key] == because]
        have = "has" if len(each) == 1 else "have"
        lines.append(f"{', '.join(each)} {have} no effect: {because}")
    return lines


def _given(experiment: Experiment) -> set[str]:
    """Return the keys that were set, and the sections of these keys."""
    found = set()
    for leaf in experiment.origins.given:
        parts = leaf.split(".")
        found |= {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
    return found


def _told(key: str, why: Mapping[str, str]) -> bool:
    """Whether a key, or a section it lies in, has been found without effect."""
    return any(f"{key}.".startswith(f"{of}.") for of in why)


def _usual(experiment: Experiment, key: str) -> bool:
    """Whether a key has its default, or what the preset would set."""
    model, name = _place(experiment, key)
    if model is None:
        return True
    value = getattr(model, name)
    if value == type(model).model_fields[name].get_default(call_default_factory=True):
        return True
    preset, (section, _, of_section) = experiment.engine.preset, key.partition(".")
    if section != "engine" or preset is None:
        return False
    sets = preset_named(preset).engine_values(experiment.cluster.gpu)
    return of_section in sets and sets[of_section] == value


def _shown(experiment: Experiment, key: str) -> str:
    model, name = _place(experiment, key)
    value = getattr(model, name)
    return key if isinstance(value, BaseModel) else f"{key} {shown(value)}"


def _place(experiment: Experiment, key: str) -> tuple[Any, str]:
    """Return the section that has a key, None if a study left it out, and the key's name there."""
    *path, name = key.split(".")
    model: Any = experiment
    for part in path:
        model = getattr(model, part, None)
    return model, name
