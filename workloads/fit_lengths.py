"""Fit the tables of `workloads/lengths` to real traces.

`python -m workloads.fit_lengths DATA_DIR [OUT_DIR]` reads the `*.csv.gz` named below from DATA_DIR
and writes one YAML each. Only knots leave the data, no rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from workloads.base import Ints
from workloads.lengths.pair import LengthPair
from workloads.lengths.tables import FOLDER, Knots

TAIL = (0.001, 0.005, 0.99, 0.995, 0.998, 0.999)
"""Quantiles that get a knot in any case: they move means and maxima more than KS distances."""
SEED = 20_250_101
DRAWS = 200_000
LONGBENCH_KINDS = {
    "single-doc-qa": ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    "multi-doc-qa": ("hotpotqa", "2wikimqa", "musique", "dureader"),
    "summarization": ("gov_report", "qmsum", "multi_news", "vcsum"),
    "few-shot": ("trec", "triviaqa", "samsum", "lsht"),
    "synthetic": ("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
    "code": ("lcc", "repobench-p"),
}
"""The six kinds of task of the LongBench paper (arXiv 2308.14508, table 1)."""


@dataclass(frozen=True)
class Job:
    """One file to fit.

    Attributes:
        name: the source it becomes.
        csv: file in DATA_DIR.
        knots: knots of each distribution.
        source: where the trace comes from.
        licence: of the trace.
        note: what the lengths are.
    """

    name: str
    csv: str
    knots: int
    source: str
    licence: str
    note: str


JOBS = (
    Job(
        "alpaca",
        "alpaca_5k.csv.gz",
        96,
        "tatsu-lab/stanford_alpaca, data/alpaca_5000.json (commit 5e69c50)",
        "CC BY-NC 4.0 (text not included, only the distribution of lengths)",
        "instruction and input without template, 32k SentencePiece tokens",
    ),
    Job(
        "sharegpt",
        "sharegpt_val_10k.csv.gz",
        128,
        "AKafakA/vidur_opt_scheduler, data/trace_data/sharegpt/sharegpt_val_10k_llama2.csv",
        "MIT",
        "ShareGPT turns, Llama-2 tokens, at most about 4k in total",
    ),
    Job(
        "longbench",
        "longbench.csv.gz",
        64,
        "THUDM/LongBench; outputs of Llama-2-7B-chat from viridisGreen/LongBench",
        "MIT (LongBench); the outputs' repository states none (only lengths are used)",
        "all 21 tasks, prompts estimated from words or characters, outputs of Llama-2-7B-chat",
    ),
    Job(
        "arxiv",
        "arxiv_summarization.csv.gz",
        128,
        "microsoft/vidur, arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        "MIT",
        "arXiv summarization, Llama-2 tokens, at most 4k in total",
    ),
)


def fit_knots(lengths: Ints, knots: int) -> Knots:
    """Return knots of the distribution of `lengths`: the worst-fitted value next, until enough."""
    values, counts = np.unique(lengths, return_counts=True)
    above = np.cumsum(counts) / len(lengths)
    below = np.concatenate([[0.0], above[:-1]])
    # The distribution function is flat below each value and jumps at it: both ends can be knots.
    x = np.column_stack([values - 1, values]).ravel()
    y = np.column_stack([below, above]).ravel()
    x, first = np.unique(x, return_index=True)
    y = y[first]
    chosen = {0, len(x) - 1, *np.searchsorted(y, TAIL).tolist()}
    while len(chosen) < min(knots, len(x)):
        at = sorted(chosen)
        error = np.abs(y - np.interp(x, x[at], y[at]))
        error[at] = -1
        chosen.add(int(np.argmax(error)))
    at = sorted(chosen)
    return Knots(tokens=tuple(x[at].tolist()), cdf=tuple(np.round(y[at], 5).tolist()))


def fit_correlation(input: Knots, output: Knots, spearman: float) -> float:
    """Return the copula's correlation at which draws have the rank correlation `spearman`."""
    normals = np.random.default_rng(SEED).standard_normal((DRAWS, 2))
    low, high = -0.99, 0.99
    for _ in range(14):
        middle = (low + high) / 2
        drawn = spearmanr(*LengthPair(input, output, middle).at(normals)).statistic
        low, high = (middle, high) if drawn < spearman else (low, middle)
    return round((low + high) / 2, 4)


def fit_table(frame: pd.DataFrame, tags: tuple[str, ...], knots: int) -> dict[str, Any]:
    """Return one table of a file."""
    prompt, output = frame["prompt_tokens"].to_numpy(), frame["output_tokens"].to_numpy()
    input_knots, output_knots = fit_knots(prompt, knots), fit_knots(output, knots)
    rho = fit_correlation(input_knots, output_knots, spearmanr(prompt, output).statistic)
    return {
        "tags": list(tags),
        "n": len(frame),
        "normal_correlation": rho,
        "input": _listed(input_knots),
        "output": _listed(output_knots),
    }


def _listed(knots: Knots) -> dict[str, list[Any]]:
    return {"tokens": list(knots.tokens), "cdf": list(knots.cdf)}


def _populations(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Yield (tags, rows): LongBench by kind of task and language, others whole."""
    if "task" not in frame:
        yield (), frame
        return
    kind_of = {task: kind for kind, tasks in LONGBENCH_KINDS.items() for task in tasks}
    for (kind, language), rows in frame.groupby([frame["task"].map(kind_of), frame["kind"]]):
        yield tuple(dict.fromkeys([str(kind), str(language)])), rows


def main(data: Path, out: Path = FOLDER) -> None:
    """Fit every job and write its file."""
    import yaml

    for job in JOBS:
        frame = pd.read_csv(data / job.csv)
        content = {
            "source": job.source,
            "licence": job.licence,
            "note": job.note,
            "tables": [fit_table(rows, tags, job.knots) for tags, rows in _populations(frame)],
        }
        text = yaml.safe_dump(content, sort_keys=False, width=100, default_flow_style=None)
        head = f"# Written by `python -m workloads.fit_lengths`, from {job.csv}. Do not edit.\n"
        (out / f"{job.name}.yaml").write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
