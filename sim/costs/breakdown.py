"""What each term of a profile takes of a step: the same sums as `StepCost`, kept apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sim.costs.catalogue import Model, model_named
from sim.costs.model import FS_PER_MS, StepCost
from sim.costs.profile import (
    AttentionRow,
    HostTerm,
    PrefillAttentionTerm,
    Profile,
    Terms,
    TokenCurve,
    TokenLine,
)

NOTHING = TokenCurve(lines=(TokenLine(),))
TERMS = ("dense", "lm_head", "prefill attention", "decode attention", "all-reduce", "host")


@dataclass(frozen=True)
class Example:
    """A step.

    Attributes:
        name: what tables call it.
        prompt_tokens: of one prompt, nothing cached before; 0: none.
        batch: decodes.
        context: tokens that each of them caches.
    """

    name: str
    prompt_tokens: int
    batch: int
    context: int


EXAMPLES = (
    Example("decode, batch 1", 0, 1, 512),
    Example("decode, batch 8", 0, 8, 512),
    Example("decode, batch 32", 0, 32, 512),
    Example("decode, batch 128", 0, 128, 512),
    Example("prefill, 128 tokens", 128, 0, 0),
    Example("prefill, 512 tokens", 512, 0, 0),
    Example("prefill, 2048 tokens", 2048, 0, 0),
    Example("512 tokens beside 32 decodes", 512, 32, 512),
)


@dataclass(frozen=True)
class Parts:
    """A step's time by term.

    Attributes:
        example: the step.
        ms: term -> milliseconds.
        extrapolated: whether the step lies outside the fitted range.
    """

    example: Example
    ms: dict[str, float]
    extrapolated: bool

    @property
    def total_ms(self) -> float:
        """The whole step."""
        return sum(self.ms.values())


def step_ms(cost: StepCost, example: Example) -> float:
    """Return the price of a step, milliseconds."""
    new, batch = example.prompt_tokens, example.batch
    kv = batch * example.context
    return cost.step(int(new > 0), new, new, new * new, batch, kv) / FS_PER_MS


def parts_of(profile: Profile, example: Example) -> Parts:
    """Return what each term takes of a step: the difference it makes when the others are there.

    What a floor adds (`min_step_ms`, `launch_ms`) counts as host.
    """
    model = model_named(profile.model)
    whole = step_ms(StepCost(profile, model), example)
    ms, terms = {}, profile.terms.model_copy(update={"launch_ms": 0.0})
    for name in TERMS:
        less = _without(terms, name)
        after = step_ms(_cost(profile, less, model), example)
        before = step_ms(_cost(profile, terms, model), example)
        ms[name] = max(before - after, 0.0)
        terms = less
    ms["host"] += max(whole - sum(ms.values()), 0.0)
    outside = StepCost(profile, model).extrapolates(example.prompt_tokens, example.batch)
    return Parts(example, ms, outside)


def examples_of(profile: Profile) -> tuple[Example, ...]:
    """Return the examples that fit the model's longest sequence."""
    longest = model_named(profile.model).max_length
    return tuple(
        replace(each, context=min(each.context, longest // 2))
        for each in EXAMPLES
        if each.prompt_tokens <= longest
    )


def _cost(profile: Profile, terms: Terms, model: Model) -> StepCost:
    return StepCost(profile.model_copy(update={"terms": terms}), model)


def _without(terms: Terms, name: str) -> Terms:
    updates: dict[str, dict[str, Any]] = {
        "dense": {
            "dense": NOTHING,
            "dense_decode": None if terms.dense_decode is None else NOTHING,
        },
        "lm_head": {"lm_head": NOTHING},
        "prefill attention": {"prefill_attention": PrefillAttentionTerm()},
        "decode attention": {"decode_attention": (AttentionRow(),)},
        "all-reduce": {"allreduce": None},
        "host": {"host": HostTerm()},
    }
    return terms.model_copy(update=updates[name])
