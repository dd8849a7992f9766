"""Read a trace file of any known format."""

from __future__ import annotations

import importlib
from pathlib import Path

from sim.types import Trace
from workloads.base import Limits, bad, unknown
from workloads.columns import TraceBuilder
from workloads.formats.base import Format, Source
from workloads.hashes import Hashes, SideFile

_NOT_FORMATS = {"__init__", "base"}


def format_names() -> list[str]:
    """Return the names of all formats: the files of `workloads/formats`."""
    folder = Path(__file__).parent / "formats"
    return sorted({file.stem for file in folder.glob("*.py")} - _NOT_FORMATS)


def read_trace(
    path: str | Path,
    format: str = "auto",
    tokenizer: str | None = None,
    max_rows: int | None = None,
    prefix_blocks: str | Path | None = None,
    hash_block_tokens: int | None = None,
) -> Trace:
    """Read requests from a file.

    Args:
        path: the file; gzip is recognised by its first bytes.
        format: a name of `format_names()`, or `auto` to go by the columns or keys.
        tokenizer: `tokenizer.json` or Hugging Face name, for formats that hold text.
        max_rows: rows after which the file is refused; None means 10 million.
        prefix_blocks: file with the shared prompt blocks (`workloads.prefix_blocks`).
        hash_block_tokens: tokens of a block that has an id; None: as the format says, else 16.

    Returns:
        The requests sorted by arrival; `notes` counts rows read, dropped (and why), and arrivals
        that were out of order.

    Raises:
        BadInput: one line with file and row.
    """
    limits = Limits() if max_rows is None else Limits(max_rows=max_rows)
    return read_within(Path(path), limits, format, tokenizer, prefix_blocks, hash_block_tokens)


def read_within(
    path: Path,
    limits: Limits,
    format: str,
    tokenizer: str | None,
    prefix_blocks: str | Path | None = None,
    hash_block_tokens: int | None = None,
) -> Trace:
    """Read requests from a file under the given limits; see `read_trace`."""
    source = Source(path, limits, tokenizer)
    chosen = _sniffed(source) if format == "auto" else _named(source, format)
    hashes = Hashes(chosen.hash_block_tokens, chosen.whole_hashes)
    if prefix_blocks is not None:
        hashes = SideFile(Path(prefix_blocks), hash_block_tokens or hashes.block_tokens)
    elif hash_block_tokens is not None:
        hashes.block_tokens = hash_block_tokens
    builder = TraceBuilder(path, limits, chosen.ticks_per_s, chosen.absolute, hashes)
    for piece in chosen.read(source):
        builder.add(piece)
    return builder.build()


def _load(name: str) -> Format:
    found: Format = importlib.import_module(f"workloads.formats.{name}").FORMAT
    return found


def _named(source: Source, name: str) -> Format:
    if name not in format_names():
        raise unknown("format", "format", name, ["auto", *format_names()])
    chosen = _load(name)
    if source.kind not in chosen.kinds:
        kinds = " or ".join(chosen.kinds)
        raise bad(source.path, f"format {name} is {kinds}, this file is {source.kind}")
    missing = chosen.missing(source)
    if missing:
        raise bad(
            source.path, f"format {name} lacks {_listed(missing)}; has {_listed(source.keys)}"
        )
    return chosen


def _sniffed(source: Source) -> Format:
    for name in format_names():
        chosen = _load(name)
        if source.kind in chosen.kinds and not chosen.missing(source):
            return chosen
    near = _nearest(source)
    lacks = "" if near is None else f"; {near.name} lacks {_listed(near.missing(source))}"
    valid = ", ".join(format_names())
    raise bad(source.path, f"no known format has {_listed(source.keys)}{lacks}; valid: {valid}")


def _nearest(source: Source) -> Format | None:
    """Return the format of which the file has most of the needed keys; of a table, else plain."""
    formats = [f for f in map(_load, format_names()) if source.kind in f.kinds and f.needs]
    has = {f.name: 1 - len(f.missing(source)) / len(f.needs) for f in formats}
    best = max(formats, key=lambda f: (has[f.name], f.name == "plain"), default=None)
    return best if best is not None and (has[best.name] or best.name == "plain") else None


def _listed(names: list[str] | tuple[str, ...]) -> str:
    shown = [name[:40] for name in names[:12]]
    return ", ".join(shown + ["…"] * (len(names) > 12)) or "nothing"
