"""What a profile file says: one YAML per GPU, model, layout and engine, validated."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sim.costs.terms import Curve
from sim.types import BadInput

GAMMA_WITHOUT_FIT = 1.5
"""Slow-down of decode attention by a chunk in the step where nothing was fitted (costs.md)."""

Knots = tuple[tuple[Annotated[float, Field(ge=0)], float], ...]
Range = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


def _check_rising(starts: list[Any]) -> None:
    if any(left >= right for left, right in pairwise(starts)):
        raise ValueError(f"starts must rise, got {starts}")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HostTerm(_Frozen):
    """Host work of a step, milliseconds."""

    step_ms: float = Field(0.0, ge=0, description="every step")
    prefill_step_ms: float = Field(0.0, ge=0, description="more for a step that holds a chunk")
    seq_ms: float = Field(0.0, ge=0, description="per row of the step (chunks and decodes)")
    token_ms: float = Field(0.0, ge=0, description="per prompt token and cached token handed over")
    min_step_ms: float = Field(0.0, ge=0, description="no step is shorter")


class TokenLine(_Frozen):
    """One line of a curve: `base_ms + token_ms*T` from `from_tokens` on."""

    from_tokens: int = Field(0, ge=0)
    base_ms: float = 0.0
    token_ms: float = 0.0


class TokenCurve(_Frozen):
    """Milliseconds over a count of tokens (or rows): lines, or knots joined by lines."""

    lines: tuple[TokenLine, ...] = ()
    knots_tokens_ms: Knots = ()

    @model_validator(mode="after")
    def _check(self) -> TokenCurve:
        if bool(self.lines) == bool(self.knots_tokens_ms):
            raise ValueError("give either lines or knots_tokens_ms")
        _check_rising([line.from_tokens for line in self.lines])
        _check_rising([tokens for tokens, _ in self.knots_tokens_ms])
        return self

    def curve(self) -> Curve:
        """Return the curve, in milliseconds."""
        if self.knots_tokens_ms:
            tokens, ms = zip(*self.knots_tokens_ms, strict=True)
            return Curve.through(tokens, ms)
        return Curve(
            [line.from_tokens for line in self.lines],
            [line.base_ms for line in self.lines],
            [line.token_ms for line in self.lines],
        )


ZERO_CURVE = TokenCurve(lines=(TokenLine(),))


class PrefillAttentionTerm(_Frozen):
    """Coefficients of `sim.costs.terms.PrefillAttention`, milliseconds per layer."""

    read_base_ms: float = Field(0.0, ge=0)
    read_token_ms: float = Field(0.0, ge=0, description="per token of sum(l+p)")
    base_ms: float = 0.0
    chunk_ms: float = 0.0
    token_ms: float = Field(0.0, description="per token of sum(l)")
    quad_ms: float = Field(0.0, description="per unit of sum(l*(l+2p))")


class AttentionRow(_Frozen):
    """Decode attention from a batch size on: `base_ms + seq_ms*B + kv_token_ms*K` per layer."""

    from_batch: int = Field(1, ge=1)
    base_ms: float = 0.0
    seq_ms: float = Field(0.0, ge=0)
    kv_token_ms: float = Field(0.0, ge=0)


class AllreduceTerm(_Frozen):
    """One all-reduce: latency and bandwidth, or knots of (message bytes, milliseconds)."""

    latency_ms: float = Field(0.0, ge=0)
    bandwidth_bytes_per_s: float | None = Field(None, gt=0, description="message bytes per second")
    knots_bytes_ms: Knots = ()

    @model_validator(mode="after")
    def _check(self) -> AllreduceTerm:
        if (self.bandwidth_bytes_per_s is None) == (not self.knots_bytes_ms):
            raise ValueError("give either bandwidth_bytes_per_s or knots_bytes_ms")
        _check_rising([size for size, _ in self.knots_bytes_ms])
        return self

    def curve(self) -> Curve:
        """Return milliseconds over message bytes."""
        if self.bandwidth_bytes_per_s is None:
            sizes, ms = zip(*self.knots_bytes_ms, strict=True)
            return Curve.through(sizes, ms)
        return Curve([0.0], [self.latency_ms], [1e3 / self.bandwidth_bytes_per_s])


class Terms(_Frozen):
    """Every term of a step (`sim.costs.terms`); one that is left out costs nothing."""

    layers: int | None = Field(
        None, gt=0, description="factor of the attention terms; null: the model's layers, "
        "1: the coefficients cover the whole forward pass",
    )  # fmt: skip
    host: HostTerm = HostTerm()
    dense: TokenCurve = Field(description="g(T); with dense_decode: of steps that hold a chunk")
    dense_decode: TokenCurve | None = Field(None, description="g(B) of steps without a chunk")
    lm_head: TokenCurve = Field(ZERO_CURVE, description="h(S), over rows that need logits")
    prefill_attention: PrefillAttentionTerm = PrefillAttentionTerm()
    decode_attention: tuple[AttentionRow, ...] = Field(min_length=1)
    gamma: float = Field(GAMMA_WITHOUT_FIT, ge=1, description="decode attention beside a chunk")
    allreduce: AllreduceTerm | None = None
    launch_ms: float = Field(
        0.0, ge=0, description="least device time of a step with a chunk: no graph runs it, and "
        "the host starts its kernels one by one",
    )  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> Terms:
        _check_rising([row.from_batch for row in self.decode_attention])
        return self


class FittedRange(_Frozen):
    """Where the coefficients were fitted, [lowest, highest]; null: not known, not checked."""

    step_tokens: Range | None = None
    batch: Range | None = None
    kv_tokens: Range | None = None


class PhaseError(_Frozen):
    """Error on the points of one phase, or on steps composed of several."""

    points: int = Field(gt=0)
    median_abs_frac: float = Field(ge=0, description="median |predicted/measured - 1|")
    p95_abs_frac: float = Field(ge=0)
    mean_abs_frac: float = Field(ge=0)
    bias_frac: float = Field(description="mean predicted/measured - 1")


class HeldOutError(_Frozen):
    """Error on points left out of the fit."""

    points: int = Field(gt=0)
    mean_abs_frac: float = Field(ge=0, description="mean |predicted/measured - 1|")
    bias_frac: float = Field(0.0, description="mean predicted/measured - 1")
    phases: dict[str, PhaseError] = Field({}, description="of prefill, decode, mixed ... steps")


class Profile(_Frozen):
    """Latency and capacity of one instance: what the simulator knows about an engine on a GPU."""

    name: str = Field(description="the file's name without its suffix")
    gpu: str
    model: str
    tp: int = Field(ge=1)
    pp: int = Field(1, ge=1)
    dtype: Literal["fp16", "bf16", "fp32"]
    engine: str
    versions: dict[str, str] = {}
    basis: Literal["measured", "derived", "roofline"] = Field(
        description="fitted on this hardware, computed from such a fit, or from peak figures"
    )
    default: bool = Field(False, description="chosen by `auto` among several engines")
    num_gpu_blocks: int | None = Field(None, gt=0, description="KV blocks as the engine reports")
    block_size: int = Field(16, gt=0, description="tokens in a KV block")
    fitted_range: FittedRange = FittedRange()
    held_out_error: HeldOutError | None = None
    source: str
    derivation: str
    notes: tuple[str, ...] = Field((), description="warnings repeated in every output")
    terms: Terms

    @property
    def measured(self) -> bool:
        """Whether the coefficients come from measurements of this model on this GPU."""
        return self.basis == "measured"


def profile_stem(model: str, gpu: str, tp: int, pp: int = 1) -> str:
    """Return how the names of a layout's profiles begin: `opt-13b_a100-80gb_tp2`."""
    stages = f"pp{pp}" if pp > 1 else ""
    return f"{model}_{gpu}_tp{tp}{stages}"


def load_profile(path: Path) -> Profile:
    """Read a profile file; `BadInput` names file, key and value."""
    import yaml

    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    return as_profile(data, path)


def as_profile(data: object, path: Path) -> Profile:
    """Return the profile that the content of a file says; `BadInput` names file, key and value."""
    if not isinstance(data, dict):
        raise BadInput(f"{path}: a profile is a mapping of keys, got {data!r:.60}")
    try:
        return Profile.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        raise BadInput(f"{path}: {_first_problem(error)}") from None


def profile_hash(profile: Profile) -> str:
    """Return a short digest of everything the profile says."""
    text = json.dumps(profile.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_profile(profile: Profile) -> dict[str, Any]:
    """Return what a reader wants to know first, ready for JSON; `terms` holds the rest."""
    fields = profile.model_dump(mode="json")
    fields["measured"] = profile.measured
    fields["kv_tokens"] = (
        None if profile.num_gpu_blocks is None else profile.num_gpu_blocks * profile.block_size
    )
    fields["hash"] = profile_hash(profile)
    fields["terms"] = fields.pop("terms")  # last: it is long
    return fields


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    # a misspelt key is also a missing one: name the misspelling
    problem = min(problems, key=lambda found: found["type"] != "extra_forbidden")
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        valid = ", ".join(_model_at(problem["loc"]).model_fields)
        return f"unknown key '{key}' (value {problem['input']!r:.40}); valid: {valid}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}, got {problem['input']!r:.80}"


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model whose key `loc[-1]` is."""
    model: type[BaseModel] = Profile
    for key in loc[:-1]:
        if isinstance(key, str):
            model = _model_in(model.model_fields[key].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
