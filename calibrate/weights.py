"""Read Hugging Face checkpoints: safetensors files and the numbers of `config.json`."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sim.types import BadInput

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Element types of safetensors that are read."""

HEADER_LENGTH_BYTES = 8
"""A safetensors file: length of the header (little endian), the header (JSON), the data."""

Read = Callable[[str, tuple[int, ...]], Tensor]
"""(name, shape) -> the weight as stored."""


@dataclass(frozen=True)
class Constants:
    """Numbers of a model that its shapes do not tell; none changes timing.

    Attributes:
        norm_eps: added to the variance in norms.
        rope_theta: base of the rotary frequencies.
        llama3_scaling: `factor`, `low_freq_factor`, `high_freq_factor` and
            `original_max_position_embeddings` of Llama 3.1's stretched frequencies.
    """

    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    llama3_scaling: Mapping[str, float] | None = None

    def rope_frequencies(self, head_dim: int) -> Tensor:
        """Return the angle a position adds, for each pair of a head [head_dim / 2]."""
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float32)
        frequencies = 1.0 / self.rope_theta ** (pairs / head_dim)
        if self.llama3_scaling is None:
            return frequencies
        scaling = self.llama3_scaling
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / scaling["factor"])


def read_constants(path: Path) -> Constants:
    """Return the constants of `config.json` beside the weights; the defaults without one.

    Raises:
        BadInput: the file is not JSON, or scales rotary frequencies in an unknown way.
    """
    config_path = (path if path.is_dir() else path.parent) / "config.json"
    if not config_path.exists():
        return Constants()
    try:
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{config_path}: not JSON: {error}") from None
    # transformers 5 gathers all of it under rope_parameters
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise BadInput(f"{config_path}: rotary scaling '{kind}'; valid: default, llama3")
    default = Constants()
    return Constants(
        config.get("rms_norm_eps", default.norm_eps),
        rope.get("rope_theta", config.get("rope_theta", default.rope_theta)),
        rope if kind == "llama3" else None,
    )


def read_checkpoint(path: Path) -> Read:
    """Return a reader of the weights in a safetensors file, or a folder of them, by name.

    A leading `model.` of the stored names is left out.

    Raises:
        BadInput: no safetensors there. The reader: no such weight, another shape or type.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise BadInput(f"{path}: no safetensors file there")
    entries = {name: entry for file in files for name, entry in _entries(file).items()}

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in entries:
            raise BadInput(f"{path}: no weight '{name}'; it holds {', '.join(list(entries)[:4])}…")
        return entries[name].read(name, shape)

    return read


@dataclass(frozen=True)
class _Entry:
    file: Path
    data: mmap.mmap
    start: int
    shape: tuple[int, ...]
    dtype: str

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        where = f"{self.file}: weight '{name}'"
        if self.shape != shape:
            raise BadInput(f"{where} has shape {list(self.shape)}, the model wants {list(shape)}")
        if self.dtype not in TYPES:
            raise BadInput(f"{where} has type {self.dtype}; valid: {', '.join(TYPES)}")
        flat = torch.frombuffer(
            self.data, dtype=TYPES[self.dtype], count=math.prod(shape), offset=self.start
        )
        return flat.reshape(shape)


def _entries(file: Path) -> dict[str, _Entry]:
    try:
        with file.open("rb") as opened:
            # a private copy on write: torch wants memory it may write to
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        begin = HEADER_LENGTH_BYTES + int.from_bytes(data[:HEADER_LENGTH_BYTES], "little")
        header = json.loads(data[HEADER_LENGTH_BYTES:begin])
        return {
            name.removeprefix("model."): _Entry(
                file, data, begin + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"]
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{file}: not a safetensors file: {error}") from None
