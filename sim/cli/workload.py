"""`workload`: describe, convert, generate, fetch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.show import notices, progress, say, show_columns, show_json

if TYPE_CHECKING:
    from sim.types import Trace

app = typer.Typer(help="Look at, convert, draw and download workloads.")

BUILT_IN_REQUESTS = 10_000
"""Requests drawn to describe a distribution."""

BAR_CELLS = 50

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Trace file or built-in name.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the workload, e.g. max_model_len=4096."),
]
Format = Annotated[str, typer.Option("--format", help="Format of the file.")]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="tokenizer.json or name, for files with text.")
]
MaxRows = Annotated[
    int | None, typer.Option("--max-rows", min=1, help="Refuse longer files; default 10 million.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Root of the random streams.")]
To = Annotated[
    str, typer.Option("--to", help="plain, or what another reads: vidur, simdistserve, blis.")
]


@app.command()
def describe(
    source: Source,
    settings: Settings = None,
    format: Format = "auto",
    tokenizer: Tokenizer = None,
    max_rows: MaxRows = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the histogram to a PNG, PDF or SVG.")
    ] = None,
    seed: Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print requests, span, rate, quantiles and a histogram."""
    from workloads.describe import describe, plot_histogram

    fixed = {"format": format, "tokenizer": tokenizer, "max_rows": max_rows}
    trace = _trace(source, settings, fixed, seed)
    described = describe(trace)
    notices(_counted(trace))
    if plot is not None:
        plot_histogram(trace, plot)
        say(f"wrote {plot}")
    if json:
        show_json(described)
        return
    print(f"{source}: {described['n']} requests", end="")
    if described["span_s"] is not None:
        print(f" over {described['span_s']:.6g} s", end="")
    if described["rate_per_s"] is not None:
        print(f", {described['rate_per_s']:.4g} per second", end="")
    print(f"\nrank correlation of input and output: {_shown(described['rank_correlation'])}")
    _show_lengths(described)
    for name, lengths in (("input_len", trace.input_len), ("output_len", trace.output_len)):
        _show_histogram(name, lengths)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Trace file of any known format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".csv, .csv.gz, .parquet; see --to")],
    format: Format = "auto",
    tokenizer: Tokenizer = None,
    max_rows: MaxRows = None,
    to: To = "plain",
) -> None:
    """Write a trace in the plain format, or in that of another simulator."""
    from workloads import read_trace

    _write(read_trace(source, format, tokenizer, max_rows), out, to)


@app.command()
def generate(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".csv, .csv.gz, .parquet; see --to")],
    settings: Settings = None,
    num_requests: Annotated[
        int | None, typer.Option("--num-requests", "-n", min=1, help="How many.")
    ] = None,
    seed: Seed = 0,
    to: To = "plain",
) -> None:
    """Draw a trace from a distribution: bucketsim workload generate sharegpt out.csv -n 1000."""
    _write(_trace(source, settings, {"num_requests": num_requests}, seed), out, to)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="Data set; without it, list them.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the file.")] = Path("data"),
) -> None:
    """Download a public data set, or go on with it; its SHA-256 is kept and checked."""
    from workloads.fetch import datasets, fetch

    if name is None:
        for key, dataset in datasets().items():
            print(f"{key}: {dataset.url} ({dataset.licence}) {dataset.note}".rstrip())
        return
    with progress(f"fetching {name}") as update:
        path = fetch(name, out, update)
    print(path)


def _trace(source: str, settings: list[str] | None, fixed: dict[str, Any], seed: int) -> Trace:
    """Return the requests of a source as the `workload` section of a config would have them."""
    from sim.study.config import COMMAND_LINE, overridden
    from sim.study.validation import validate
    from workloads import WorkloadConfig, generate
    from workloads.sources import is_file

    data: dict[str, Any] = {"source": source} | {k: v for k, v in fixed.items() if v is not None}
    data = overridden(data, settings or ())
    if not is_file(source) and not {"num_requests", "duration_s"} & set(data):
        data["num_requests"] = BUILT_IN_REQUESTS
    return generate(validate(WorkloadConfig, data, "workload", lambda _: COMMAND_LINE), seed)


def _write(trace: Trace, out: Path, to: str) -> None:
    """Write a trace in a form; say what was counted and what the form has no place for."""
    from workloads.exports import write_as

    left = write_as(trace, out, to)
    notices(_counted(trace) + [f"left out, for {to} has no place for them: {w}" for w in left])
    say(f"wrote {len(trace)} requests to {out}")


def _counted(trace: Trace) -> list[str]:
    from sim.study.notices import trace_notices

    return trace_notices(trace.notes)


def _show_lengths(described: dict[str, Any]) -> None:
    rows = {name: described[name] for name in ("input_len", "output_len")}
    columns = {key: [f"{row[key]:.0f}" for row in rows.values()] for key in rows["input_len"]}
    show_columns({"tokens": list(rows), **columns})


def _show_histogram(name: str, lengths: Any) -> None:
    """Print a histogram over bins that double in width."""
    import numpy as np

    edges = 2 ** np.arange(int(lengths.max()).bit_length() + 1)
    counts, _ = np.histogram(lengths, edges)
    print(f"\n{name} (tokens, share of requests)")
    for low, count in zip(edges, counts, strict=False):
        bar = "█" * round(count / counts.max() * BAR_CELLS)
        print(f"{low:>8} - {2 * low - 1:<8} {count / len(lengths):6.1%} {bar}".rstrip())


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
