"""One YAML is one experiment: its sections, their bounds, and how a file becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

import policies
from sim.core.routers import ROUTERS
from sim.costs.profile import HostTerm
from sim.study.attention_config import AttentionKeys
from sim.study.failures_config import FailuresConfig
from sim.study.power_config import PowerConfig
from sim.study.presets import fill
from sim.study.speculative_config import SpeculativeConfig
from sim.study.statistics.clock import ENGINE, Clock
from sim.study.validation import shown, unknown_key, validate
from sim.study.yaml_file import parse_yaml, read_yaml
from sim.types import BadInput
from workloads import WorkloadConfig

COMMAND_LINE = "command line"


class Section(BaseModel):
    """Base of the sections: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PoolConfig(Section):
    """Instances of one role."""

    role: Literal["mixed", "prefill", "decode"] = Field("mixed", description="what they do")
    instances: int = Field(ge=1, description="how many")
    tp: int = Field(1, ge=1, description="tensor-parallel degree, GPUs")
    pp: int = Field(1, ge=1, description="pipeline stages, GPUs")
    gpu: str | None = Field(None, description="catalogue name; null: the cluster's")


class LinkConfig(Section):
    """How KV caches move from prefill to decode instances."""

    name: Literal["nvlink", "pcie", "ethernet"] = Field(
        "nvlink", description="which bandwidth: the GPU's NVLink or PCIe peak, 100 Gbit/s Ethernet"
    )
    gb_per_s: float | None = Field(
        None, gt=0, description="bandwidth of a link, one way, GB/s; null: the named link's"
    )
    latency_ms: float = Field(0.0, ge=0, description="time before the first byte, ms")
    shared: bool = Field(
        False, description="all transfers share one link, instead of one per pair of instances"
    )
    overlap: float = Field(
        0.0, ge=0, le=1, description="share of a transfer hidden behind the prefill (Splitwise 0.9)"
    )


class PredictorConfig(Section):
    """What policies that want an output length are told."""

    name: Literal["class", "oracle", "constant", "mean"] = Field(
        "class",
        description="class: right with probability accuracy, else a neighbouring class's edge",
    )
    accuracy: float = Field(0.8, ge=0, le=1, description="of class (UELLM: above 0.8)")
    tokens: int = Field(256, ge=1, description="of constant, tokens")


class PrefixRoutingConfig(Section):
    """Parameters of the router `prefix`; names and values of SGLang's router."""

    cache_threshold: float = Field(
        0.3, ge=0, le=1, description="share of the prompt that has to match before it decides"
    )
    balance_abs_threshold: int = Field(
        64, ge=0, description="so many more requests on the busiest instance: load decides"
    )
    balance_rel_threshold: float = Field(
        1.5, ge=1, description="and the ratio of busiest to idlest above which it does"
    )


class ClusterConfig(Section):
    """What there is to serve with."""

    gpu: str = Field(description="catalogue name of the GPU")
    count: int = Field(ge=1, description="GPUs")
    model: str = Field(description="catalogue name of the model")
    profile: str = Field(
        "auto",
        min_length=1,
        description="step times: auto, roofline (peak figures, not measured), an engine, "
        "a profile's name or the path of a YAML",
    )
    pools: tuple[PoolConfig, ...] | None = Field(
        None, min_length=1, description="layout; null: the policy's own"
    )
    link: LinkConfig = Field(LinkConfig(), description="between prefill and decode instances")


class SloBounds(Section):
    """Bounds a request has to meet; null: no bound."""

    ttft_ms: float | None = Field(None, gt=0, description="arrival to first token, ms")
    tpot_ms: float | None = Field(None, gt=0, description="mean time per further token, ms")
    e2e_ms: float | None = Field(None, gt=0, description="arrival to last token, ms")


class SloConfig(SloBounds):
    """Service-level objectives."""

    scale: float = Field(1.0, gt=0, description="factor on every bound")
    by: dict[str, SloBounds] = Field(
        {}, description="other bounds for a class: component of the mixture -> bounds"
    )
    abort_after_s: float | None = Field(
        None, gt=0, description="the client gives up so long after arrival, s; null: never"
    )

    def bounds(self, source: str | None = None) -> SloBounds:
        """Return the scaled bounds of a class (None: of all others)."""
        chosen = self if source is None else self.by[source]
        scaled = {
            name: None if value is None else value * self.scale
            for name in SloBounds.model_fields
            for value in (getattr(chosen, name),)
        }
        return SloBounds(**scaled)


class EngineConfig(AttentionKeys):
    """What running is: everything about the engine that no policy decides."""

    preset: str | None = Field(
        None, description="engine and version whose settings hold where none are given; null: none"
    )
    fuse_steps: bool = Field(True, description="one event for equal decode steps; same results")
    loop: Literal["fast", "simpy"] = Field(
        "fast", description="event loop: our tighter one, or stock SimPy; same results"
    )
    block_size: int | None = Field(
        None, ge=1, le=4096, description="tokens in a KV block; null: the profile's"
    )
    num_gpu_blocks: int | None = Field(
        None, ge=1, description="KV blocks of an instance; null: the profile's"
    )
    null_block: bool = Field(
        False, description="one KV block of an instance is never used (vLLM V1)"
    )
    max_model_len: int | None = Field(
        None, ge=1, description="longest prompt + output, tokens; null: workload's or model's"
    )
    async_scheduling: bool = Field(
        False, description="a step is formed while the one before runs (vLLM V1)"
    )
    scheduler_reserve_full_isl: bool = Field(
        False,
        description="a prompt is admitted only if all of it fits, not its first chunk (policy "
        "continuous, v1; others want room for the whole anyway)",
    )
    ttft_clock: Literal["client", "engine"] = Field(
        "client",
        description="TTFT and E2E count from the arrival, api_latency_ms included, or from when "
        "the scheduler sees the request",
    )
    api_latency_ms: float = Field(
        0.0,
        ge=0,
        description="tokenising and HTTP, ms: added to the client's TTFT and E2E, keeps no engine "
        "busy",
    )
    host_step_ms: float = Field(
        0.0, ge=0, description="host time of every step, on top of the profile's, ms"
    )
    host_seq_ms: float = Field(
        0.0, ge=0, description="host time for each sequence of a step, on top, ms"
    )
    host_prefill_ms: float = Field(
        0.0, ge=0, description="host time of a step that holds a prompt, on top, ms"
    )
    first_step_ms: float = Field(
        0.0, ge=0, description="the first step of an instance, or after a repair, lasts longer, ms"
    )
    router: str = Field("round-robin", description="which instance a request goes to")
    prefix_routing: PrefixRoutingConfig = Field(
        PrefixRoutingConfig(), description="limits of router: prefix"
    )
    decode_router: str = Field(
        "least-loaded", description="which decode instance a prefilled request goes to"
    )
    first_token: Literal["prefill", "decode"] = Field(
        "prefill",
        description="who sends the first token when roles are split: the prefill instance, or the "
        "decode instance after the transfer and one step (vLLM's P/D proxy)",
    )
    pipeline: Literal["interleaved", "sequential"] = Field(
        "interleaved",
        description="pp > 1: disjoint batches rotate through the stages, or one batch at a time",
    )
    min_step_ms: float = Field(
        0.0, ge=0, description="no step is shorter, ms (host-bound engines; HuggingFace 38.6)"
    )
    predictor: PredictorConfig = Field(PredictorConfig(), description="output length prediction")
    swap_space_gib: float = Field(
        4.0, ge=0, description="host memory for swapped KV blocks per GPU, GiB (vLLM: 4)"
    )
    swap_gb_per_s: float | None = Field(
        None, gt=0, description="KV copies GPU to host per GPU, GB/s; null: the GPU's PCIe peak"
    )
    oom_restart_s: float = Field(
        30.0, ge=0, description="an instance is away so long after running out of memory, s"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of GPU memory the engine may fill (vLLM: 0.9)"
    )
    failures: FailuresConfig | None = Field(None, description="instances fail; null: never")

    @property
    def clock(self) -> Clock:
        """By whose watch latencies count."""
        return Clock.of(self.model_dump(include={"ttft_clock", "api_latency_ms"}))

    @property
    def host(self) -> HostTerm:
        """Host time on top of the profile's."""
        return HostTerm(
            step_ms=self.host_step_ms + self.plan_ms(self.async_scheduling),
            seq_ms=self.host_seq_ms,
            prefill_step_ms=self.host_prefill_ms,
        )

    @field_validator("router", "decode_router")
    @classmethod
    def _known_router(cls, name: str) -> str:
        if name not in ROUTERS:
            raise ValueError(f"unknown router; valid: {', '.join(ROUTERS)}")
        return name

    @field_validator("decode_router")
    @classmethod
    def _decode_router_knows_load(cls, name: str) -> str:
        if name == "prefix":
            raise ValueError(
                "a KV cache that moves is copied whole: prefix is for router only; valid: "
                + ", ".join(router for router in ROUTERS if router != name)
            )
        return name


class RunConfig(Section):
    """How often and how long."""

    seed: int = Field(0, ge=0, description="root of all random streams")
    replications: int = Field(5, ge=1, le=10_000, description="independent repetitions")
    stop: Literal["drain", "horizon"] = Field(
        "drain", description="end when all requests have left, or at horizon_s"
    )
    horizon_s: float | None = Field(None, gt=0, description="simulated end (stop: horizon), s")
    warmup_s: float = Field(0.0, ge=0, description="requests arriving earlier are not counted, s")
    warmup: Literal["fixed", "mser5"] = Field(
        "fixed", description="end of the warm-up: warmup_s, or found in each replication by MSER-5"
    )
    steps: bool = Field(False, description="write steps.parquet")

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if (self.stop == "horizon") != (self.horizon_s is not None):
            raise ValueError(
                f"stop: horizon and horizon_s go together, got stop: {self.stop} and "
                f"horizon_s: {self.horizon_s}"
            )
        if self.horizon_s is not None and self.warmup_s >= self.horizon_s:
            raise ValueError(f"warmup_s {self.warmup_s} is not below horizon_s {self.horizon_s}")
        if self.warmup == "mser5" and self.warmup_s:
            raise ValueError(f"warmup: mser5 and warmup_s {self.warmup_s} exclude each other")
        return self


@dataclass(frozen=True)
class PolicyChoice:
    """A policy and its parameters.

    Attributes:
        name: name in the registry.
        label: what tables call it; the name, unless two entries share one.
        params: an object of the policy's `Config`.
        key: dotted key of its entry in the config.
    """

    name: str
    label: str
    params: BaseModel
    key: str


@dataclass(frozen=True)
class Origins:
    """Who set which value.

    Attributes:
        file: where the config comes from.
        given: dotted keys of what was set -> the file, `command line` or `preset NAME`.
    """

    file: str
    given: Mapping[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str | None:
        """Return who set a key or something in it; None: nobody."""
        found = {v for k, v in self.given.items() if f"{k}.".startswith(f"{key}.")}
        for first in (COMMAND_LINE, self.file):
            if first in found:
                return first
        return min(found, default=None)

    def where(self, key: str) -> str:
        """Return whom to blame for a key."""
        return self.of(key) or self.file


@dataclass(frozen=True)
class Experiment:
    """A validated experiment; `origins` knows where each value comes from."""

    cluster: ClusterConfig
    policies: tuple[PolicyChoice, ...]
    workload: WorkloadConfig
    slo: SloConfig
    engine: EngineConfig
    run: RunConfig
    origins: Origins
    speculative: SpeculativeConfig | None = None
    power: PowerConfig | None = None

    def resolved(self) -> dict[str, Any]:
        """Return every value, defaults included, as plain data: a config file's content."""
        chosen = [
            {"name": p.name, "label": p.label, **p.params.model_dump(mode="json")}
            for p in self.policies
        ]
        found = {
            "cluster": self.cluster.model_dump(mode="json"),
            "policy": chosen,
            "workload": self.workload.model_dump(mode="json"),
            "slo": self.slo.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json"),
            "run": self.run.model_dump(mode="json"),
        }
        if self.speculative is not None:  # its absence leaves no trace: results keep their names
            found["speculative"] = self.speculative.model_dump(mode="json")
        if self.power is not None:  # its absence leaves no trace: results keep their names
            found["power"] = self.power.model_dump(mode="json")
        return found

    def origin(self, key: str) -> str:
        """Return where a dotted key's value is from: a file, command line, preset or default."""
        if not key.startswith("policy."):
            return self.origins.of(key) or "default"
        _, at, name = key.split(".", 2)
        choice = self.policies[int(at)]
        if name not in ("name", "label") and name not in choice.params.model_fields_set:
            return "default"
        return self.origins.of(f"{choice.key}.{name}") or self.origins.file


REQUIRED = ("cluster", "policy", "workload")
KEYS = ("cluster", "policy", "workload", "slo", "engine", "run", "speculative", "power")
ABOUT = "about"
"""What a run adds to the config it writes; ignored when that file is run again."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment.

    Args:
        path: a YAML file.
        overrides: `key.sub=value`, the value as in YAML; they win over the file.

    Raises:
        BadInput: one line with file, key, value and what would be valid.
    """
    return resolve(read_config(path), str(path), overrides)


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set keys given as `key.sub=value` in `data`, and return it."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise BadInput(f"override {override!r}: expected key.sub=value")
        set_key(data, key, parse_yaml(text, f"override {override!r}"))
    return data


def resolve(
    data: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    swept: Iterable[str] = (),
) -> Experiment:
    """Validate an experiment given as plain data.

    Args:
        data: the sections.
        source: where they come from, for error messages.
        overrides: see `load_config`.
        swept: the keys of `data` that a point of a sweep sets.

    Raises:
        BadInput: one line with file, key, value and what would be valid.
    """
    data = overridden(deepcopy(dict(data)), overrides)
    setters = {f"{override.partition('=')[0]}.": COMMAND_LINE for override in overrides}
    setters |= {f"{key}.": f"{source}: sweep" for key in swept}
    given = {
        leaf: next((by for key, by in setters.items() if f"{leaf}.".startswith(key)), source)
        for leaf in _leaves(data)
    }
    if isinstance(data.get("policy"), (list, str)):
        data["policy"] = _named(data["policy"])
    given |= fill(data, Origins(source, given).where)
    origins = Origins(source, given)
    where = origins.where
    for key in data:
        if key == "sweep":
            raise BadInput(
                f"{where(key)}: sweep: only `bucketsim sweep` and `tune` take it; remove it"
            )
        if key not in (*KEYS, ABOUT):
            raise BadInput(f"{where(key)}: {unknown_key(str(key), KEYS)}")
    for key in REQUIRED:
        if data.get(key) is None:
            raise BadInput(f"{origins.file}: {key} is missing; needed: {', '.join(REQUIRED)}")
    engine = validate(EngineConfig, data.get("engine"), "engine", where)
    power = data.get("power")
    _check_clock(engine, origins)
    return Experiment(
        cluster=validate(ClusterConfig, data["cluster"], "cluster", where),
        policies=policy_choices(data["policy"], origins),
        workload=validate(WorkloadConfig, data["workload"], "workload", where),
        slo=validate(SloConfig, data.get("slo"), "slo", where),
        engine=engine,
        run=validate(RunConfig, data.get("run"), "run", where),
        origins=origins,
        speculative=_speculative(data.get("speculative"), where),
        power=None if power is None else validate(PowerConfig, power, "power", where),
    )


def _speculative(data: Any, where: Callable[[str], str]) -> SpeculativeConfig | None:
    if data is None:
        return None
    return validate(SpeculativeConfig, data, "speculative", where)


def _check_clock(engine: EngineConfig, origins: Origins) -> None:
    key = "engine.api_latency_ms"
    if engine.ttft_clock == ENGINE and engine.api_latency_ms and key in origins.given:
        raise BadInput(
            f"{origins.where(key)}: {key} {engine.api_latency_ms:g} lies outside the engine's "
            "clock; leave it out, or engine.ttft_clock: client"
        )


def more_policies(
    experiment: Experiment, names: Sequence[str], source: str
) -> tuple[PolicyChoice, ...]:
    """Return policies by name, with what the experiment's preset sets of them."""
    data = {
        "policy": _named(list(names)),
        "engine": {"preset": experiment.engine.preset},
        "cluster": {"gpu": experiment.cluster.gpu},
    }
    given = fill(data, lambda _: source)
    return policy_choices(data["policy"], Origins(source, given))


def policy_choices(entries: Any, origins: Origins) -> tuple[PolicyChoice, ...]:
    """Return the policies of the `policy` section: a name, a mapping or a list of them."""
    where = origins.where("policy")
    if entries == []:
        raise BadInput(f"{where}: policy: the list is empty; valid: {', '.join(policies.names())}")
    if isinstance(entries, list):
        chosen = [_choice(entry, f"policy.{at}", origins) for at, entry in enumerate(entries)]
    else:
        chosen = [_choice(entries, "policy", origins)]
    labels = [p.label for p in chosen]
    for label in labels:
        if labels.count(label) > 1:
            raise BadInput(f"{where}: policy: two are called {label!r}; give each its own `label`")
    return tuple(chosen)


def _choice(entry: Any, key: str, origins: Origins) -> PolicyChoice:
    where = origins.where(key)
    params = _named(entry)
    if not isinstance(params, Mapping) or not isinstance(params.get("name"), str):
        raise BadInput(
            f"{where}: {key}: expected a name or a mapping with `name`, got {shown(entry)}; "
            f"valid names: {', '.join(policies.names())}"
        )
    params = dict(params)
    name = params.pop("name")
    label = str(params.pop("label", name))
    if not label.isprintable() or not label or set(label) & set("/\\") or label[0] == ".":
        raise BadInput(f"{where}: {key}.label: {shown(label)} cannot name a folder")
    try:
        config = policies.load(name).Config
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    return PolicyChoice(name, label, validate(config, params, key, origins.where), key)


# -- reading ------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """Return the data of a config file, not yet validated."""
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a mapping with {', '.join(REQUIRED)}, got {shown(data)}")
    return data


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings and lists; a missing mapping is made."""
    *path, last = key.split(".")
    inner: Any = data
    if path[:1] == ["policy"]:
        data["policy"] = _named(data.get("policy"))
    for part in path:
        if isinstance(inner, dict) and inner.get(part) is None:
            inner[part] = {}
        inner = inner[_index(inner, part, key)]
    inner[_index(inner, last, key)] = value


def _named(policy: Any) -> Any:
    """Return the `policy` section with bare names written out as mappings."""
    if isinstance(policy, list):
        return [_named(entry) for entry in policy]
    return {"name": policy} if isinstance(policy, str) else policy


def _index(inner: Any, part: str, key: str) -> str | int:
    """Return `part` as what indexes `inner`."""
    if isinstance(inner, dict):
        return part
    if not isinstance(inner, list):
        raise BadInput(f"override {key!r}: there is no {part!r} in {shown(inner)}")
    if not part.isdecimal() or int(part) >= len(inner):
        raise BadInput(f"override {key!r}: {part!r} is not an index below {len(inner)}")
    return int(part)


def _leaves(data: Any, prefix: str = "") -> list[str]:
    if isinstance(data, dict) and data:
        return [leaf for k, v in data.items() for leaf in _leaves(v, f"{prefix}{k}.")]
    if isinstance(data, list) and data:
        return [leaf for k, v in enumerate(data) for leaf in _leaves(v, f"{prefix}{k}.")]
    return [prefix.rstrip(".")]
