"""The `speculative` section: tokens drafted, and verified several a step.

Names and values are those of vLLM's `speculative_config` where there are any.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sim.core.drafting import PRIOR_RATE, WINDOW_ROUNDS
from sim.core.spec import MOST_DRAFTS
from sim.study.config.section import Section

Rate = Annotated[float, Field(ge=0, le=1)]

HEAD_RATES = {
    "sharegpt": (0.60, 0.60, 0.65, 0.69, 0.73),
    "cnn": (0.64, 0.63, 0.64, 0.66, 0.69),
    "gsm8k": (0.67, 0.65, 0.64, 0.66, 0.63),
    "instructcoder": (0.61, 0.64, 0.69, 0.75, 0.77),
}
NGRAM_RATES = {
    "sharegpt": (0.13, 0.77, 0.82, 0.87, 0.88),
    "cnn": (0.12, 0.73, 0.76, 0.79, 0.80),
    "gsm8k": (0.08, 0.56, 0.60, 0.64, 0.71),
    "instructcoder": (0.31, 0.90, 0.90, 0.95, 0.93),
}
"""Conditional rates by position: Llama-3.1-8B, greedy, chains (spec: neighbours.md section 5, from
the lengths of SpecDecode-Bench, 2601.11580)."""


class AcceptanceConfig(Section):
    """How many drafted tokens the target accepts."""

    model: Literal["published", "geometric", "positions", "trace"] = Field(
        "published",
        description="published: rates measured for `data`; geometric: `rate` at every position; "
        "positions: `rates`; trace: measured lengths in `file`",
    )
    data: Literal["sharegpt", "cnn", "gsm8k", "instructcoder"] = Field(
        "sharegpt", description="of published: on which texts"
    )
    rate: Rate | None = Field(None, description="of geometric: chance of each drafted token")
    rates: tuple[Rate, ...] | None = Field(
        None,
        min_length=1,
        description="of positions: chance of a token if those before it were accepted; the last "
        "one repeated",
    )
    file: str | None = Field(
        None,
        min_length=1,
        description="of trace: a line for each request, of the numbers of tokens accepted after "
        "its output tokens 1, 2, ...",
    )
    request_sd: float = Field(
        0.4,
        ge=0,
        le=10,
        description="standard deviation of a request's shift of the logits of its rates (0.4: the "
        "spread of ShareGPT, 0.2: of GSM8K); not of trace",
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> AcceptanceConfig:
        needs = {"geometric": "rate", "positions": "rates", "trace": "file"}
        for model, key in needs.items():
            given = getattr(self, key) is not None
            if given and self.model != model:
                raise ValueError(f"{key} is of model: {model}, got model: {self.model}")
            if not given and self.model == model:
                raise ValueError(f"model: {model} needs {key}")
        return self

    def rates_of(self, method: str) -> tuple[float, ...]:
        """Return the rates by position; not of traces."""
        if self.rate is not None:
            return (self.rate,)
        if self.rates is not None:
            return self.rates
        return (NGRAM_RATES if method == "ngram" else HEAD_RATES)[self.data]


class PoolConfig(Section):
    """A pool of small models that draft together (CoSine); every number is assumed."""

    drafters: int = Field(16, ge=1, le=255, description="how many, each on a GPU of its own")
    domains: int = Field(
        5, ge=1, le=255, description="kinds of texts, equally frequent; a drafter knows one"
    )
    worst_rate: Rate = Field(0.42, description="acceptance in the domain where it is lowest")
    best_rate: Rate = Field(0.78, description="and where it is highest; the others lie between")
    off_domain: Rate = Field(0.75, description="factor for a drafter of another domain")
    fusion_gain: Rate = Field(
        0.04, description="what each drafter beside the best adds to the rate, for up to 3"
    )
    step_ms: float = Field(3.0, ge=0, description="a drafter's step, ms")
    request_ms: float = Field(0.05, ge=0, description="and for each request it drafts for, ms")
    hop_ms: float = Field(1.0, ge=0, description="time to share a drafted token, ms")
    overlap: bool = Field(
        True,
        description="drafting and verifying go on at once: a round takes the longer of them; "
        "false: one after the other",
    )


class SpeculativeConfig(Section):
    """Speculative decoding."""

    method: Literal["draft_model", "eagle", "medusa", "ngram", "drafter_pool"] = Field(
        description="who drafts: a smaller model, a head on the target, a look-up in the text, or "
        "a pool of small models that the policy chooses from (cosine; others use one of them)"
    )
    num_speculative_tokens: int = Field(
        ge=0, le=MOST_DRAFTS, description="tokens a request drafts in a step, K; 0: none"
    )
    num_speculative_tokens_per_batch_size: dict[str, int] | None = Field(
        None,
        min_length=1,
        description="K by decoding requests: inclusive ranges from 1 on, such as {1-16: 3, "
        "64-128: 2, 256-4096: 0}; between and beyond them the K before holds; null: always "
        "num_speculative_tokens, which is also the most",
    )
    control: Literal["table", "goodput"] = Field(
        "table",
        description="who chooses K: the keys above (and a policy that has rules for it), or most "
        "expected tokens a second (SmartSpec), up to them",
    )
    window: int = Field(
        WINDOW_ROUNDS,
        ge=2,
        le=10_000,
        description="of goodput: steps between choices, and remembered",
    )
    prior_rate: Rate = Field(PRIOR_RATE, description="of goodput: acceptance believed in at first")
    acceptance: AcceptanceConfig = Field(
        AcceptanceConfig(), description="how many drafted tokens the target accepts"
    )
    model: str | None = Field(None, min_length=1, description="of draft_model: its catalogue name")
    profile: str = Field(
        "auto",
        min_length=1,
        description="of draft_model: its step times, as cluster.profile; auto: roofline if that is",
    )
    draft_tensor_parallel_size: int | None = Field(
        None, ge=1, description="of draft_model: GPUs it is spread over; null: the target's"
    )
    placement: Literal["colocated", "pool"] = Field(
        "colocated",
        description="of draft_model: on the target's GPUs, or on GPUs of its own while the target "
        "verifies (these are not counted in cluster.count)",
    )
    draft_gpu: str | None = Field(
        None, description="of placement: pool: their catalogue name; null: the cluster's"
    )
    network_ms: float = Field(
        1.0,
        ge=0,
        description="of placement: pool and of drafter_pool: time a round's tokens travel both "
        "ways, ms",
    )
    step_overhead_ms: float | None = Field(
        None,
        ge=0,
        description="of draft_model: time on top of its profile in each of its steps, ms; null: "
        "0.3 with a roofline profile, else 0",
    )
    head_step_ms: float | None = Field(
        None, ge=0, description="of eagle, medusa: a drafting step, ms; null: 12 % of a plain step"
    )
    head_row_ms: float | None = Field(
        None, ge=0, description="and for each request, ms; null: 4 % of the target's"
    )
    head_kv_token_ms: float | None = Field(
        None, ge=0, description="and for each cached token, ms; null: 6 % of the target's"
    )
    pool: PoolConfig | None = Field(None, description="of drafter_pool; null: its defaults")
    draft_at_zero: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of a step that the drafter takes where K is 0 (vLLM: 0.05-0.08)",
    )

    @field_validator("num_speculative_tokens_per_batch_size", mode="before")
    @classmethod
    def _one_batch_is_a_range(cls, ranges: Any) -> Any:
        if not isinstance(ranges, dict):
            return ranges
        return {str(key) if type(key) is int else key: ranges[key] for key in ranges}

    @model_validator(mode="after")
    def _fits_the_method(self) -> SpeculativeConfig:
        drafts = self.num_speculative_tokens
        if self.method == "draft_model" and drafts and self.model is None:
            raise ValueError(
                f"method: draft_model with num_speculative_tokens {drafts} needs a draft profile: "
                "`model` (and `profile`); other methods: eagle, medusa, ngram, drafter_pool"
            )
        of_model = ("model", "draft_tensor_parallel_size", "draft_gpu", "step_overhead_ms")
        of_head = ("head_step_ms", "head_row_ms", "head_kv_token_ms")
        for keys, methods in ((of_model, ("draft_model",)), (of_head, ("eagle", "medusa"))):
            for key in keys:
                if getattr(self, key) is not None and self.method not in methods:
                    raise ValueError(
                        f"{key} is of method: {', '.join(methods)}, got method: {self.method}"
                    )
        if self.placement == "pool" and self.method != "draft_model":
            raise ValueError(f"placement: pool is of method: draft_model, got {self.method}")
        if self.pool is not None and self.method != "drafter_pool":
            raise ValueError(f"pool is of method: drafter_pool, got method: {self.method}")
        if self.acceptance != AcceptanceConfig() and self.method == "drafter_pool":
            raise ValueError("acceptance: method: drafter_pool has its own; valid: keys of `pool`")
        if self.draft_gpu is not None and self.placement != "pool":
            raise ValueError("draft_gpu is of placement: pool")
        given = [getattr(self, key) is not None for key in of_head]
        if any(given) and not all(given):
            raise ValueError(f"{', '.join(of_head)} go together")
        self.table()
        return self

    def table(self) -> dict[int, int]:
        """Return K from each batch size on.

        Raises:
            ValueError: a range is none, they overlap or leave batch 1 out.
        """
        most = self.num_speculative_tokens
        ranges = self.num_speculative_tokens_per_batch_size
        if ranges is None:
            return {1: most}
        table: dict[int, int] = {}
        last = 0
        for name, drafts in sorted(ranges.items(), key=lambda item: _first(item[0])):
            start, _, end = name.partition("-")
            if not (start.isdecimal() and (end or start).isdecimal()):
                raise ValueError(f"range {name!r}: expected FIRST-LAST, such as 1-16")
            first, to = int(start), int(end or start)
            if first <= last or to < first or (not table and first != 1):
                raise ValueError(
                    f"range {name!r}: ranges begin at 1, rise and do not overlap, got "
                    f"{', '.join(ranges)}"
                )
            if not 0 <= drafts <= most:
                raise ValueError(
                    f"range {name!r}: {drafts} tokens; valid: 0 to num_speculative_tokens {most}"
                )
            table[first], last = drafts, to
        return table


def _first(name: str) -> int:
    start = name.partition("-")[0]
    return int(start) if start.isdecimal() else 0
