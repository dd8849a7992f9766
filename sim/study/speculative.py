"""From the `speculative` section to what the engine runs: prices, memory, accepted tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sim.core.acceptance import Acceptance, Positions, Traced
from sim.core.drafter_pool import Cooperative, DrafterPool
from sim.core.drafting import ByGoodput, ByRules, Controller
from sim.core.spec import Speculation
from sim.costs.build import InstanceCost
from sim.costs.catalogue import DTYPE_BYTES, Model, gpu_named, model_named
from sim.costs.library import find_profile
from sim.costs.memory import check_fits, check_layout
from sim.costs.model import StepCost
from sim.costs.profile import Profile
from sim.costs.speculative import (
    Drafter,
    DraftHead,
    DraftModel,
    NgramLookup,
    PooledDrafters,
    SpeculativeCost,
)
from sim.study.config.speculative import PoolConfig, SpeculativeConfig
from sim.types import BadInput, CostModel, DrafterRules, OneDrafter, Policy, Pool

if TYPE_CHECKING:
    from sim.study.config import ClusterConfig, Experiment

MS_PER_S = 1e3

ROOFLINE_OVERHEAD_MS = 0.3
"""Launches and sampling of a drafting step that peak figures leave out (assumption): 0.74 ms a
drafted position of EAGLE-1 on an H100 (vLLM #20780) less the 0.44 ms that reading one layer and the
lm_head of Llama-3.1-8B takes."""

FIRST_DRAFTS = 4
"""Tokens drafted at first where a policy's rules adapt their number (CoSine; assumption)."""

LARGEST_BATCH = 1 << 40
"""Nobody decodes more requests at a time."""

STATIC = "runs static batches"
"""What policies say of themselves that run batches to completion (`Policy.synchronous`)."""


@dataclass(frozen=True)
class Drafting:
    """A drafter beside a target.

    Attributes:
        drafter: its prices.
        weight_bytes: its weights on the target's GPUs.
        kv_token_bytes: what it caches of a token there.
        notes: what the reader of any output must be told.
    """

    drafter: Drafter
    weight_bytes: int = 0
    kv_token_bytes: int = 0
    notes: tuple[str, ...] = ()


def with_drafter(
    experiment: Experiment, policy: Policy, pool: Pool, costs: InstanceCost
) -> tuple[InstanceCost, CostModel]:
    """Return an instance with less room for the KV cache, and prices of its rounds.

    A draft model on the target's GPUs takes its weights and, in every block, its own keys and
    values; a head takes one layer of both. Blocks that the config gives (`engine.num_gpu_blocks`)
    stay as they are. Without drafts (K = 0) nothing is loaded.

    Raises:
        BadInput: an unknown name, no profile, or it does not fit.
    """
    config = experiment.speculative
    if config is None or not config.num_speculative_tokens:
        return costs, costs.cost
    try:
        if config.method == "drafter_pool":
            drafting = _pooled(config, policy)
        else:
            drafting = _drafting(config, experiment.cluster, pool, costs)
        blocks = costs.num_gpu_blocks
        if experiment.engine.num_gpu_blocks is None:
            blocks = _blocks_left(drafting, costs, config)
    except BadInput as error:
        raise BadInput(f"{experiment.origins.where('speculative')}: speculative: {error}") from None
    notes = (*costs.notes, *drafting.notes)
    cost = SpeculativeCost(
        costs.cost,
        drafting.drafter,
        config.placement == "pool" or config.method == "drafter_pool",
        config.network_ms / MS_PER_S,
        config.draft_at_zero,
        _pool_of(config).overlap,
    )
    return replace(costs, num_gpu_blocks=blocks, notes=notes), cost


def speculation_of(experiment: Experiment, policy: Policy, seed: int) -> Speculation | None:
    """Return the speculation of a run; `seed` is of the accepted tokens."""
    config = experiment.speculative
    if config is None:
        return None
    k_max = config.num_speculative_tokens
    control: Callable[[CostModel], Controller] | None = None
    if config.control == "goodput":
        control = partial(
            ByGoodput, k_max=k_max, window=config.window, prior_rate=config.prior_rate
        )
    elif _rules(config, policy).adapts and k_max:
        rules = _rules(config, policy)
        control = partial(ByRules, rules=rules, k_max=k_max, first=FIRST_DRAFTS)
    acceptance = _acceptance(experiment, config, policy, seed)
    return Speculation(k_max, _table(config, policy), acceptance, control)


def _rules(config: SpeculativeConfig, policy: Policy) -> DrafterRules:
    """Return what chooses from a pool of drafters: the policy, or nobody."""
    pooled = config.method == "drafter_pool"
    return (pooled and policy.drafters) or OneDrafter()


def _table(config: SpeculativeConfig, policy: Policy) -> dict[int, int]:
    """Return K from each batch size on, cut where the policy's rules allow fewer candidates."""
    table, rules = config.table(), _rules(config, policy)
    if not rules.most_drafts(1):
        return table
    batches = range(1, LARGEST_BATCH)
    starts = set(table)
    for most in range(1, config.num_speculative_tokens):  # where no more than that are allowed
        starts.add(1 + bisect_left(batches, -most, key=lambda batch: -rules.most_drafts(batch)))
    cut, before = {}, 0
    for batch in sorted(starts):
        before = table.get(batch, before)
        cut[batch] = min(before, rules.most_drafts(batch))
    return cut


def check_speculation(experiment: Experiment, policy: Policy) -> None:
    """Refuse what does not go with drafted tokens.

    Raises:
        BadInput: why.
    """
    if experiment.speculative is None:
        return
    where = experiment.origins.where
    engine = experiment.engine
    if policy.synchronous == STATIC:
        raise BadInput(
            f"{where('speculative')}: speculative: policy {policy.name!r} {STATIC}, which draft no "
            "tokens; valid: policies that batch continuously"
        )
    if engine.attention == "ragged" or engine.cascade_attention:
        key = "attention: ragged" if engine.attention == "ragged" else "cascade_attention: true"
        raise BadInput(
            f"{where('engine.' + key.split(':')[0])}: engine.{key}: rounds with `speculative` are "
            "priced by sums of lengths; valid: attention: fitted, balanced, no cascade_attention"
        )
    if engine.async_scheduling:
        raise BadInput(
            f"{where('engine.async_scheduling')}: engine.async_scheduling true: a step's number of "
            "tokens is known at its end, so with `speculative` none is formed ahead; valid: false"
        )
    if engine.min_step_ms:
        raise BadInput(
            f"{where('engine.min_step_ms')}: engine.min_step_ms {engine.min_step_ms:g}: a floor of "
            "plain steps, not of rounds with `speculative`; valid: 0"
        )


# -- who drafts ---------------------------------------------------------------------------------


def _drafting(
    config: SpeculativeConfig, cluster: ClusterConfig, pool: Pool, costs: InstanceCost
) -> Drafting:
    if config.method == "ngram":
        return Drafting(NgramLookup())
    if config.method == "draft_model":
        return _draft_model(config, cluster, pool, costs.profile.dtype)
    target, dtype = model_named(costs.profile.model), costs.profile.dtype
    values = config.head_step_ms, config.head_row_ms, config.head_kv_token_ms
    given = [value / MS_PER_S for value in values if value is not None]
    return Drafting(
        DraftHead(*given) if given else DraftHead.of(costs.cost),
        target.layer_matmul_params * DTYPE_BYTES[dtype],
        target.kv_bytes_per_token(dtype, pool.tp) // target.layers,
    )


def _pooled(config: SpeculativeConfig, policy: Policy) -> Drafting:
    pool = _pool_of(config)
    times_s = (ms / MS_PER_S for ms in (pool.step_ms, pool.request_ms, pool.hop_ms))
    drafter = PooledDrafters(pool.drafters, _rules(config, policy), *times_s)
    note = (
        f"the pool's {pool.drafters} drafters, their acceptance and their times are assumed, and "
        "their GPUs are in no count of GPUs"
    )
    return Drafting(drafter, notes=(note,))


def _pool_of(config: SpeculativeConfig) -> PoolConfig:
    return config.pool or PoolConfig()


def _draft_model(
    config: SpeculativeConfig, cluster: ClusterConfig, pool: Pool, dtype: str
) -> Drafting:
    assert config.model is not None
    model = model_named(config.model)
    apart = config.placement == "pool"
    gpu = pool.gpu or cluster.gpu
    gpu = (config.draft_gpu or gpu) if apart else gpu
    device = gpu_named(gpu)
    tp = config.draft_tensor_parallel_size or (1 if apart else pool.tp)
    if not apart and tp not in (1, pool.tp):
        raise BadInput(f"draft_tensor_parallel_size {tp}: valid: 1, {pool.tp} (the target's)")
    check_layout(model, tp)
    name = config.profile
    if name == "auto" and cluster.profile == "roofline":  # as `--roofline` wants it
        name = "roofline"
    try:
        profile = find_profile(model.name, gpu, tp, 1, name)
    except BadInput as error:
        raise BadInput(f"{error}; speculative.profile: roofline for the drafts alone") from None
    overhead_ms = config.step_overhead_ms
    if overhead_ms is None:
        overhead_ms = ROOFLINE_OVERHEAD_MS if profile.basis == "roofline" else 0.0
    drafter = DraftModel(StepCost(profile, model), overhead_ms / MS_PER_S)
    notes = _notes(config, model, model_named(cluster.model), profile, tp)
    if apart:
        check_fits(model, device, tp)
        return Drafting(drafter, notes=notes)
    # every GPU keeps as many blocks as the fullest, so a draft on one of them counts on all
    copies = pool.tp // tp
    return Drafting(
        drafter,
        copies * model.weight_bytes(dtype),
        copies * model.kv_bytes_per_token(dtype, tp),
        notes,
    )


def _notes(
    config: SpeculativeConfig, model: Model, target: Model, profile: Profile, tp: int
) -> tuple[str, ...]:
    notes = []
    if model.vocab != target.vocab:
        notes.append(
            f"{model.name} drafts with a vocabulary of {model.vocab} tokens, {target.name} has "
            f"{target.vocab}: translating them is not charged"
        )
    if config.acceptance.model == "published":
        notes.append(f"drafts of {model.name} are taken to be accepted as those of an EAGLE head")
    if profile.basis != "measured":
        peak = "peak figures" if profile.basis == "roofline" else "derived"
        notes.append(f"draft times of {model.name} are {peak}, not measured")
    if config.placement == "pool":
        notes.append(
            f"the drafters' GPUs ({tp} x {profile.gpu} an instance) are in no count of GPUs"
        )
    return tuple(notes)


def _blocks_left(drafting: Drafting, costs: InstanceCost, config: SpeculativeConfig) -> int:
    """Return the KV blocks that fit beside the drafter, each of them with its keys and values."""
    size = costs.kv_block_bytes + drafting.kv_token_bytes * costs.block_size
    room = costs.num_gpu_blocks * costs.kv_block_bytes - drafting.weight_bytes
    if room >= size:
        return room // size
    name = config.model or config.method
    raise BadInput(
        f"{name} with {drafting.weight_bytes / 1e9:.1f} GB of weights leaves no KV block of the "
        f"{costs.num_gpu_blocks} (of {costs.kv_block_bytes / 1e6:.1f} MB)"
    )


# -- what is accepted ---------------------------------------------------------------------------


def _acceptance(
    experiment: Experiment, config: SpeculativeConfig, policy: Policy, seed: int
) -> Acceptance:
    how = config.acceptance
    most = max(config.num_speculative_tokens, 1)
    if config.method == "drafter_pool":
        like = _pool_of(config)
        keys = {"drafters", "domains", "worst_rate", "best_rate", "off_domain", "fusion_gain"}
        drafters = DrafterPool(**like.model_dump(include=keys))
        return Cooperative(drafters, _rules(config, policy), most, seed)
    if how.file is not None:
        key = "speculative.acceptance.file"
        try:
            return Traced(_read_lengths(Path(how.file)), most, seed)
        except BadInput as error:
            raise BadInput(f"{experiment.origins.where(key)}: {key}: {error}") from None
    return Positions(how.rates_of(config.method), most, seed, how.request_sd)


def _read_lengths(path: Path) -> Sequence[Sequence[int]]:
    """Read a line of whole numbers for each request, separated by blanks or commas."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: no text in UTF-8") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        if not all(word.isdecimal() for word in words):
            raise BadInput(f"{path}: line {number}: {line[:40]!r}: expected whole numbers")
        found.append([int(word) for word in words])
    if not found:
        raise BadInput(f"{path}: holds no lengths")
    return found
