"""The measurement CSV: one row a point, appended as soon as it is measured.

Columns are the fields of `Sample`, in order; times are milliseconds with six significant digits,
unknown numbers are empty. A row that was cut off or damaged costs that row only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from sim.types import BadInput

PHASES = ("prefill", "decode", "mixed", "host")
STATUSES = ("ok", "oom", "refused")

SKIPPED = "line skipped"
"""How the complaint about a line ends."""

Key = tuple[str, bool, str]


@dataclass(frozen=True)
class Sample:
    """One measured step.

    For `padded` steps the sums are those of the rectangle that was computed, as the simulator
    prices padded batches; `lengths` says the true ones.

    Attributes:
        phase: prefill, decode, mixed (chunks and decodes), or host (the least work at some S).
        padded: every row as long as the longest.
        lengths: chunks `16x128`, `128+64`, `256@1024` (256 new after 1024 cached) and decodes
            `d32x1024`, joined by `;`.
        chunks: n, prompt chunks.
        new_tokens: sum(l) over the chunks.
        context_tokens: sum(l+p), p being the tokens cached before.
        quad_tokens: sum(l*(l+2p)).
        batch: B, decodes.
        kv_tokens: K, tokens the decodes hold before the step.
        step_tokens: sum(l) + B.
        runs: repetitions behind the times.
        device_ms: forward pass by device events; median on a GPU, on a CPU that of the visits, each
            taken to the speed the machine mostly had.
        wall_ms: from the call to the tokens on the host, likewise.
        fastest_ms: fastest wall time, on a CPU at that speed, too.
        spread_frac: (p90 - p10) / median of the runs, likewise.
        peak_bytes: most memory allocated during the step.
        sm_clock_mhz: clock of the GPU, where it can be read.
        power_w: power draw of the GPU, where it can be read.
        status: ok, oom (ran out of memory) or refused (could not fit); times only when ok.
    """

    phase: str
    padded: bool
    lengths: str
    chunks: int
    new_tokens: int
    context_tokens: int
    quad_tokens: int
    batch: int
    kv_tokens: int
    step_tokens: int
    runs: int = 0
    device_ms: float | None = None
    wall_ms: float | None = None
    fastest_ms: float | None = None
    spread_frac: float | None = None
    peak_bytes: int | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    status: str = "ok"

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase '{self.phase}', valid: {', '.join(PHASES)}")
        if self.status not in STATUSES:
            raise ValueError(f"status '{self.status}', valid: {', '.join(STATUSES)}")
        if self.step_tokens != self.new_tokens + self.batch:
            raise ValueError(
                f"step_tokens {self.step_tokens} is not new_tokens {self.new_tokens} + batch "
                f"{self.batch}"
            )
        if self.step_tokens == 0 or (self.chunks > 0) != (self.new_tokens > 0):
            raise ValueError(f"{self.chunks} chunks, {self.new_tokens} new tokens, no step")
        for name in ("device_ms", "wall_ms"):
            if self.status == "ok" and not (getattr(self, name) or 0.0) > 0.0:
                raise ValueError(f"{name} must be > 0 when status is ok")

    @property
    def key(self) -> Key:
        """What tells this point from the others of a file."""
        return self.phase, self.padded, self.lengths

    @property
    def kind(self) -> str:
        """What the step holds: prefill, decode or mixed; host rows are one of these, too."""
        if self.chunks and self.batch:
            return "mixed"
        return "prefill" if self.chunks else "decode"


COLUMNS = tuple(field.name for field in fields(Sample))
HEADER = ",".join(COLUMNS)


class SampleWriter:
    """Appends rows to a measurement CSV; each is on the disk when `append` returns.

    Args:
        path: the file; created with its header, or continued. A last line that was cut off is
            ended first, so that it spoils no new row.

    Raises:
        BadInput: the file is there and has another header.
    """

    def __init__(self, path: Path) -> None:
        before = path.read_bytes() if path.exists() else b""
        if before:
            _check_header(path, before.decode(errors="replace").split("\n")[0])
        self._file = path.open("a", encoding="utf-8", newline="\n")
        if not before:
            self._write(HEADER + "\n")
        elif not before.endswith(b"\n"):
            self._write("\n")

    def append(self, sample: Sample) -> None:
        """Write one row and wait until it is on the disk."""
        self._write(",".join(map(_text, asdict(sample).values())) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())


def read_samples(path: Path) -> tuple[list[Sample], list[str]]:
    """Read a measurement CSV.

    Returns:
        The rows, in the order of the file; of a point that is there twice (measured again after
        running out of memory) the last row, at the place of the first. And a complaint
        `file:line: what` for each line that is no row.

    Raises:
        BadInput: the file cannot be read or its header is another one.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    _check_header(path, lines[0])
    rows: dict[Key, Sample] = {}
    complaints = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        try:
            sample = _parse(line)
        except ValueError as problem:
            complaints.append(f"{path}:{number}: {problem}; {SKIPPED}")
        else:
            rows[sample.key] = sample
    return list(rows.values()), complaints


def _check_header(path: Path, line: str) -> None:
    if line.rstrip("\r") != HEADER:
        raise BadInput(f"{path}:1: not a measurement file: header '{line:.60}', valid: '{HEADER}'")


def _parse(line: str) -> Sample:
    texts = line.rstrip("\r").split(",")
    if len(texts) != len(COLUMNS):
        raise ValueError(f"{len(texts)} columns instead of {len(COLUMNS)}")
    values: dict[str, Any] = {}
    for field, text in zip(fields(Sample), texts, strict=True):
        try:
            values[field.name] = READERS[str(field.type)](text)
        except ValueError:
            raise ValueError(f"{field.name} '{text:.30}' is not {field.type}") from None
    return Sample(**values)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


def _amount(text: str) -> float | None:
    if not text:
        return None
    value = float(text)
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(text)
    return value


READERS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "bool": _flag,
    "int": _count,
    "int | None": lambda text: _count(text) if text else None,
    "float | None": _amount,
}


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
