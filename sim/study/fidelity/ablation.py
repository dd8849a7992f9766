"""What each cost term and engine feature is worth: one taken away at a time.

A term of the profile is changed in a copy of the profile that lives as long as the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sim.costs.profile import Profile, Terms, TokenCurve, TokenLine
from sim.study.config import Experiment
from sim.study.fidelity.errors import Figure, figures
from sim.study.fidelity.measured import Measured
from sim.study.fidelity.replay import Replayed, replay
from sim.types import BadInput

ExperimentOf = Callable[[Sequence[str]], Experiment]

AS_MODELLED = "as modelled"
KV_SHARES = (0.3, 0.9, 1.1)
"""Of the KV cache's size: a cache that binds, and what the formula is off by."""

FEW_KNOTS = 8


@dataclass(frozen=True)
class Change:
    """Something taken away.

    Attributes:
        name: what tables call it.
        overrides: `key=value`.
        terms: makes the profile's terms what they are without; None: as they are.
    """

    name: str
    overrides: tuple[str, ...] = ()
    terms: Callable[[Terms], Terms] | None = None


@dataclass(frozen=True)
class Ablated:
    """A replay with something taken away.

    Attributes:
        name: of the change.
        figures: of the replay (`errors.figures`).
    """

    name: str
    figures: tuple[Figure, ...]


def _without(name: str, **update: Any) -> Change:
    return Change(name, terms=lambda terms: terms.model_copy(update=update))


def feature_changes(made: Replayed) -> Iterator[Change]:
    """Yield the engine features and constants that a replay has, each taken away."""
    engine = made.experiment.engine
    resolved = made.experiment.resolved()["engine"]
    for key, name in (
        ("async_scheduling", "synchronous scheduling"),
        ("enable_prefix_caching", "no prefix caching"),
        ("scheduler_reserve_full_isl", "no full-sequence reservation"),
        ("null_block", "no null block"),
    ):
        if resolved.get(key):
            yield Change(name, (f"engine.{key}=false",))
    constants = ("host_step_ms", "host_seq_ms", "host_prefill_ms", "api_latency_ms")
    set_here = [key for key in constants if resolved.get(key)]
    for key in (*set_here, *(("first_step_ms",) if resolved.get("first_step_ms") else ())):
        yield Change(f"{key} 0", (f"engine.{key}=0",))
    if len(set_here) > 1:
        yield Change("no host and API constants", tuple(f"engine.{k}=0" for k in set_here))
    params = made.experiment.policies[0].params
    if getattr(params, "max_paddings", None) is not None:
        yield Change("no limit on padding tokens", ("policy.max_paddings=null",))
    if getattr(params, "padded", False):
        packed = ("policy.padded=false", "policy.token_count=sum", "policy.max_paddings=null")
        yield Change("prompts packed, not padded", packed)
    blocks = engine.num_gpu_blocks or made.setup.instances[0].costs.num_gpu_blocks
    for share in KV_SHARES:
        yield Change(f"KV blocks x {share:g}", (f"engine.num_gpu_blocks={int(blocks * share)}",))


def term_changes(profile: Profile) -> Iterator[Change]:
    """Yield the terms that a profile has, each taken away or made simpler."""
    terms = profile.terms
    if any(ms for _, ms in terms.lm_head.knots_tokens_ms) or terms.lm_head.lines != (TokenLine(),):
        yield _without("no lm_head", lm_head=TokenCurve(lines=(TokenLine(),)))
    if terms.gamma > 1:
        yield _without("gamma 1 (decodes as fast beside a chunk)", gamma=1.0)
    nothing = type(terms.prefill_attention)()
    yield _without("no prefill attention", prefill_attention=nothing)
    yield Change("decode attention: no KV term", terms=_no_kv)
    if len(terms.dense.knots_tokens_ms) > FEW_KNOTS:
        yield Change(f"dense layers: {FEW_KNOTS} knots", terms=lambda t: _coarse(t, FEW_KNOTS))
        yield Change("dense layers: one line", terms=lambda t: _coarse(t, 2))
    if terms.allreduce is not None and profile.tp > 1:
        yield _without("no all-reduce", allreduce=None)


def ablate(
    measured: Measured, experiment_of: ExperimentOf, changes: Sequence[Change]
) -> list[Ablated]:
    """Replay with each change alone; the first result is without any. What cannot be is skipped."""
    made = replay(measured, experiment_of(()))
    profile = made.setup.instances[0].costs.profile
    found = [Ablated(AS_MODELLED, tuple(figures(made)))]
    with TemporaryDirectory() as folder:
        for at, change in enumerate(changes):
            overrides = list(change.overrides)
            if change.terms is not None:
                path = Path(folder) / f"{at}.yaml"
                _write(profile, change.terms(profile.terms), path)
                overrides.append(f"cluster.profile={path}")
            try:
                again = replay(measured, experiment_of(overrides))
            except BadInput:  # more KV blocks than the GPU has room for
                continue
            found.append(Ablated(change.name, tuple(figures(again))))
    return found


def _write(profile: Profile, terms: Terms, path: Path) -> None:
    import yaml

    data = profile.model_copy(update={"terms": terms}).model_dump(mode="json")
    path.write_text(yaml.safe_dump(data), encoding="utf-8")


def _no_kv(terms: Terms) -> Terms:
    rows = tuple(row.model_copy(update={"kv_token_ms": 0.0}) for row in terms.decode_attention)
    return terms.model_copy(update={"decode_attention": rows})


def _coarse(terms: Terms, knots: int) -> Terms:
    """Return the dense layers through few of their points, evenly in the logarithm."""
    points = terms.dense.knots_tokens_ms
    tokens = np.array([size for size, _ in points])
    wanted = np.geomspace(tokens[0], tokens[-1], knots)
    chosen = sorted({int(np.abs(tokens - size).argmin()) for size in wanted})
    kept = tuple(points[at] for at in chosen)
    return terms.model_copy(update={"dense": TokenCurve(knots_tokens_ms=kept)})
