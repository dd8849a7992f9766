"""Engine settings of a measured run: from YAML, a one-row CSV, or the server's log.

All come out as `Settings`: a nested mapping like a config's, and where each value was found. A YAML
has sections of an experiment (`SECTIONS`), or is flat with vLLM's own argument
names, as a CSV row is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.costs.catalogue import gpus, models
from sim.study.fidelity.run_table import one_run, read_frame
from sim.study.yaml_file import parse_yaml, read_yaml
from sim.types import BadInput
from workloads.base import Limits
from workloads.streams import opened

SECTIONS = ("cluster", "policy", "engine", "slo", "speculative")

FLAT = {
    "max_num_seqs": "policy.max_num_seqs",
    "max_num_batched_tokens": "policy.max_num_batched_tokens",
    "long_prefill_token_threshold": "policy.long_prefill_token_threshold",
    "max_model_len": "engine.max_model_len",
    "num_gpu_blocks": "engine.num_gpu_blocks",
    "num_gpu_blocks_override": "engine.num_gpu_blocks",
    "block_size": "engine.block_size",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "enable_prefix_caching": "engine.enable_prefix_caching",
    "async_scheduling": "engine.async_scheduling",
    "scheduler_reserve_full_isl": "engine.scheduler_reserve_full_isl",
    "swap_space": "engine.swap_space_gib",
}
"""vLLM's arguments that mean the same here."""

UNLIKE: dict[str, tuple[Any, ...]] = {
    "enforce_eager": (False,),
    "enable_chunked_prefill": (True,),
    "max_num_partial_prefills": (1,),
    "kv_cache_dtype": ("auto", "bfloat16", "float16"),
    "dtype": ("auto", "bfloat16", "float16"),
    "policy": ("fcfs",),
    "scheduling_policy": ("fcfs",),
    "enable_expert_parallel": (False,),
    "pipeline_parallel_size": (1,),
}
"""Arguments that are not modelled -> their values that need no model."""

DRAFTING = ("speculative_config", "speculative_model")
"""Arguments whose values (paths, files of a head) have no names here: `speculative` has to say."""

PRESETS = (("0.19", "vllm-0.19"), ("0.2", "vllm-2023"))
"""Start of a version -> the preset that describes it."""

LOG_LINES: tuple[tuple[str, str], ...] = (
    ("kv_tokens", r"GPU KV cache size:\s*([\d,]+)\s*tokens"),
    ("num_gpu_blocks", r"# (?:GPU|CUDA) blocks:\s*([\d,]+)"),
    ("num_gpu_blocks", r"num_gpu_blocks(?: is)?[:=]\s*([\d,]+)"),
    ("block_size", r"block_size['\"]?[:=]\s*(\d+)"),
    ("max_num_batched_tokens", r"max_num_batched_tokens['\"]?[:=]\s*(\d+)"),
    ("max_num_seqs", r"max_num_seqs['\"]?[:=]\s*(\d+)"),
    ("max_model_len", r"(?:max_model_len|max_seq_len)['\"]?[:=]\s*(\d+)"),
    ("tensor_parallel_size", r"tensor_parallel_size['\"]?[:=]\s*(\d+)"),
    ("enable_prefix_caching", r"enable_prefix_caching['\"]?[:=]\s*(True|False)"),
    ("async_scheduling", r"async_scheduling['\"]?[:=]\s*(True|False)"),
    ("gpu_memory_utilization", r"gpu_memory_utilization['\"]?[:=]\s*([\d.]+)"),
    ("vllm_version", r"LLM engine \(v(\d[\w.]*)\)"),
    ("vllm_version", r"vLLM API server version (\d[\w.]*)"),
    ("speculative_config", r"speculative_config=(SpeculativeConfig\([^)]*\))"),
    ("model", r"[( ]model=['\"]?([\w./-]+)"),
)
"""What lines of a server's log say; the last one of a kind counts."""

DEFAULT_BLOCK_SIZE = 16
"""Tokens; vLLM's on CUDA."""


@dataclass(frozen=True)
class Settings:
    """Part of a config, and who said so.

    Attributes:
        values: dotted key -> value.
        origins: dotted key -> where it was found.
        notes: what was found and is not modelled.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def over(self, below: Settings) -> Settings:
        """Return both, these on top."""
        kept = {k: v for k, v in below.values.items() if not self._covers(k)}
        notes = tuple(dict.fromkeys((*below.notes, *self.notes)))
        return Settings(
            {**kept, **self.values},
            {**{key: below.origins[key] for key in kept}, **self.origins},
            notes,
        )

    def nested(self) -> dict[str, Any]:
        """Return the values as a config's sections."""
        data: dict[str, Any] = {}
        for key, value in self.values.items():
            *outer, last = key.split(".")
            inside = data
            for name in outer:
                inside = inside.setdefault(name, {})
            inside[last] = value
        return data

    def _covers(self, key: str) -> bool:
        return any(f"{key}.".startswith(f"{mine}.") for mine in self.values)


def read_engine(path: Path, run: str | None = None) -> Settings:
    """Read engine settings from a file.

    Args:
        path: YAML (sections, or vLLM's arguments), or a CSV with one row for the run.
        run: name of the measured run, where the CSV has several.

    Raises:
        BadInput: no such file, an unknown key, or no row for the run.
    """
    if not path.is_file():
        raise BadInput(f"--engine: {path}: no such file")
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path)
    frame = read_frame(path)
    if "run" in frame and len(frame) > 1:
        frame, _ = one_run(path, frame, run)
    if len(frame) != 1:
        raise BadInput(f"--engine: {path}: {len(frame)} rows; expected one")
    cells = {str(name): frame[name].iloc[0] for name in frame}
    return from_arguments({k: _plain(v) for k, v in cells.items() if v == v}, str(path))


def read_log(path: Path) -> Settings:
    """Read what the server's log says about its KV cache and its arguments.

    Raises:
        BadInput: no such file, or none of the lines that tell the size of the KV cache.
    """
    if not path.is_file():
        raise BadInput(f"--server-log: {path}: no such file")
    with opened(path, Limits()) as stream:
        text = stream.read().decode("utf-8", "replace")
    found: dict[str, Any] = {}
    for key, pattern in LOG_LINES:
        hits = re.findall(pattern, text)
        if hits:
            found[key] = _parsed(hits[-1])
    tokens = found.pop("kv_tokens", None)
    if tokens is None and "num_gpu_blocks" not in found:
        raise BadInput(
            f"--server-log: {path}: no line 'GPU KV cache size: N tokens' (vLLM V1) nor "
            "'# GPU blocks: N' (V0)"
        )
    if tokens is not None:
        found["num_gpu_blocks"] = tokens // int(found.get("block_size", DEFAULT_BLOCK_SIZE))
    return from_arguments(found, str(path))


def from_arguments(arguments: Mapping[str, Any], source: str) -> Settings:
    """Return settings given by vLLM's own names; those without a counterpart are left alone."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in _known(arguments):
        if name in FLAT:
            values[FLAT[name]] = value
        elif name in UNLIKE and value not in UNLIKE[name]:
            notes.append(f"{name}={value} is not modelled")
        elif name in DRAFTING:
            notes.append(
                f"{name}={value} is not taken over: give speculative.method and "
                "speculative.num_speculative_tokens"
            )
    if "engine.num_gpu_blocks" not in values and arguments.get("num_kv_tokens"):
        size = int(arguments.get("block_size", DEFAULT_BLOCK_SIZE))
        values["engine.num_gpu_blocks"] = int(arguments["num_kv_tokens"]) // size
    values |= _cluster(arguments)
    version = str(arguments.get("vllm_version") or "")
    preset = [name for start, name in PRESETS if f"{version}.".startswith(f"{start}.")]
    if preset:
        values["engine.preset"] = preset[0]
    elif version:
        known = ", ".join(name for _, name in PRESETS)
        notes.append(f"no preset for vLLM {version}: set engine.preset ({known}) or its keys")
    return Settings(values, dict.fromkeys(values, source), tuple(notes))


def typed_settings(overrides: Sequence[str], source: str = "command line") -> Settings:
    """Return what `key=value` arguments set; `source` names them."""
    values = {}
    for override in overrides:
        key, _, text = override.partition("=")
        values[key] = parse_yaml(text, f"override {override!r}")
    return Settings(values, dict.fromkeys(values, source))


def _known(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        if value is not None and value != "":
            yield name.replace("-", "_"), value


def _cluster(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return GPU, model and layout, as far as the arguments name them."""
    values: dict[str, Any] = {}
    tp = int(arguments.get("tensor_parallel_size") or 1)
    instances = int(arguments.get("data_parallel_size") or 1)
    if "tensor_parallel_size" in arguments or instances > 1:
        values["cluster.count"] = tp * instances
        values["cluster.pools"] = [{"role": "mixed", "instances": instances, "tp": tp}]
    gpu = named_gpu(str(arguments.get("device_name") or ""))
    model = named_model(str(arguments.get("model") or ""))
    for part in str(arguments.get("run") or "").split("/"):
        gpu, model = gpu or named_gpu(part), model or named_model(part)
    if gpu:
        values["cluster.gpu"] = gpu
    if model:
        values["cluster.model"] = model
    return values


def named_gpu(text: str) -> str | None:
    """Return the catalogue's name of a device as drivers call it; None: not certain."""
    squeezed = _squeezed(text)
    found = [name for name in gpus() if _squeezed(name) in squeezed]
    if not found and "a100" in squeezed:
        found = [f"a100-{size}gb" for size in (40, 80) if f"{size}gb" in squeezed]
    return max(found, key=len) if found else None


def named_model(text: str) -> str | None:
    """Return the catalogue's name of a model as the hub calls it; None: not certain."""
    squeezed = _squeezed(text.rpartition("/")[2]).removeprefix("meta")
    found = [name for name in models() if squeezed.startswith(_squeezed(name))]
    return max(found, key=len) if found else None


def _from_yaml(path: Path) -> Settings:
    data = read_yaml(path)
    if not isinstance(data, Mapping) or not data:
        raise BadInput(f"--engine: {path}: expected keys and values, got {data!r:.40}")
    if not any(key in data for key in SECTIONS):
        return _from_flat_yaml(path, data)
    values: dict[str, Any] = {}
    for section, content in data.items():
        if section == "about":
            continue
        if section not in SECTIONS:
            raise BadInput(
                f"--engine: {path}: unknown section {section!r}; valid: {', '.join(SECTIONS)}"
            )
        if isinstance(content, Mapping):
            values |= {f"{section}.{key}": value for key, value in content.items()}
        elif section == "policy":
            values["policy.name"] = content
        else:
            raise BadInput(f"--engine: {path}: {section}: expected keys, got {content!r:.40}")
    return Settings(values, dict.fromkeys(values, str(path)))


def _from_flat_yaml(path: Path, data: Mapping[str, Any]) -> Settings:
    arguments = {str(key).replace("-", "_"): value for key, value in data.items()}
    other = ("tensor_parallel_size", "data_parallel_size", "device_name", "model", "run")
    valid = (*FLAT, *UNLIKE, *other, "vllm_version", "num_kv_tokens")
    if not any(key in valid for key in arguments):
        raise BadInput(
            f"--engine: {path}: neither sections ({', '.join(SECTIONS)}) nor arguments of vLLM; "
            f"has {', '.join(list(arguments)[:8])}"
        )
    return from_arguments(arguments, str(path))


def _plain(value: Any) -> Any:
    """Return a cell of a CSV as plain Python."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


def _parsed(text: str) -> Any:
    """Return a value of a log."""
    if text in ("True", "False"):
        return text == "True"
    digits = text.replace(",", "")
    if digits.isdecimal():
        return int(digits)
    try:
        return float(digits)
    except ValueError:
        return text


def _squeezed(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
