"""Fill in docs/engine-modes.md: `make engine-modes`.

Prices single steps (picture, table of imbalance) and runs small studies (tables of padding, of the
published ablation, of shared prefixes), all of Llama-3.1-8B on one H100 with the shipped profile.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sim.core.attention import WholeRows, price_by_batch
from sim.core.simulation import Simulation, simulate
from sim.study.build import build, settings
from sim.study.config import Experiment, resolve
from sim.study.run import requests_of, run, saturation_rate
from sim.study.statistics.stats import student_t

PAGE = Path(__file__).parent / "engine-modes.md"
PICTURE = Path(__file__).parent / "img" / "engine-modes.png"
FS_PER_MS = 1e12

Lens = NDArray[np.int64]
Mix = Callable[[np.random.Generator, int], Lens]

MODES: dict[str, dict[str, Any]] = {
    "padded": {"padding": "batch"},
    "ragged": {"padding": "none", "attention": "ragged"},
    "balanced": {"padding": "none", "attention": "balanced"},
}
LINES: dict[str, dict[str, Any]] = {
    "padded": {"color": "#16425b", "linestyle": "--"},
    "ragged": {"color": "#d9772b", "linestyle": "-"},
    "balanced": {"color": "#3a9278", "linestyle": "-."},
}
DRAWS = 100
CVS = np.linspace(0.0, 2.0, 11)
BATCHES = (1, 2, 4, 8, 16, 24, 32, 40, 64, 128, 256)
TABLE_BATCHES = (1, 2, 8, 16, 24, 40, 64, 256)
PROMPTS, PROMPT_TOKENS = 16, 512
DECODES, CONTEXT_TOKENS = 32, 2048

RATES_PER_S = (0.1, 0.3, 0.5, 1.0)
OUTPUT_TOKENS = 256
"""Of the ablation, unpublished like its rate."""
ANSWERS = 4
PROMPT_RATES_PER_S = (1.0, 2.0, 4.0, 6.0)
PUBLISHED = {"balanced": (8.63, 411.0), "ragged": (13.89, 422.0)}
"""ITL and TTFT, ms (neighbours.md section 4)."""


def uniform(low: int, high: int) -> Mix:
    """Return lengths that are uniform from `low` to `high` tokens."""
    return lambda rng, n: rng.integers(low, high + 1, n)


def lognormal(mean: float, cv: float) -> Mix:
    """Return lengths of that mean and coefficient of variation."""
    sigma = float(np.sqrt(np.log1p(cv * cv)))
    mu = np.log(mean) - sigma * sigma / 2
    return lambda rng, n: np.maximum(1, np.rint(rng.lognormal(mu, sigma, n))).astype(np.int64)


MIXES: dict[str, Mix] = {
    "equal": uniform(2048, 2048),
    "U(n, 4n)": uniform(4096, 16384),
    "log-normal, cv 1": lognormal(2048, 1.0),
    "log-normal, cv 2": lognormal(2048, 2.0),
}
"""Only ratios of lengths matter: U(512,2048) is U(4096,16384)."""
MARKS = ("s", "o", "^", "D")


def experiment(
    engine: Mapping[str, Any],
    workload: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    replications: int = 5,
) -> Experiment:
    """Return a study of one instance."""
    return resolve(
        {
            "cluster": {"gpu": "h100", "count": 1, "model": "llama-3.1-8b"},
            "policy": policy or {"name": "continuous"},
            "workload": workload
            or {"source": "sharegpt", "num_requests": 1, "arrivals": {"process": "all-at-once"}},
            "engine": engine,
            "run": {"replications": replications},
        },
        "docs/engine_modes.py",
    )


# -- single steps ---------------------------------------------------------------------------------


class Steps:
    """Prices steps under each mode."""

    def __init__(self) -> None:
        chosen = {name: experiment(engine) for name, engine in MODES.items()}
        sims = {}
        for name, each in chosen.items():
            setup = build(each, each.policies[0])
            trace = requests_of(each, 0)
            how = settings(each, setup.policy, trace, 0)
            sims[name] = Simulation(trace, setup.policy, setup.specs, how)
        self.costs = {name: sim.instances[0].cost for name, sim in sims.items()}
        instance = sims["ragged"].instances[0]
        price_by_batch(instance)
        assert isinstance(instance.batch_cost, WholeRows)
        self.rows = instance.batch_cost

    def decode_ms(self, lens: Lens, mode: str) -> float:
        """Price a decode step; padded: of a static batch, every row as long as the longest."""
        batch, kv = len(lens), int(lens.sum())
        if mode == "ragged":
            self.rows.offsets = sorted(lens.tolist())
            piece = self.rows.at(batch, kv, 0)
            return (piece.base_fs + piece.slope_fs * kv) / FS_PER_MS
        if mode == "padded":
            kv = batch * int(lens.max())
        return self.costs[mode].step(0, 0, 0, 0, batch, kv) / FS_PER_MS

    def prefill_ms(self, lens: Lens, mode: str) -> float:
        """Price a step of whole prompts."""
        lens = np.full_like(lens, lens.max()) if mode == "padded" else lens
        new, quad, rows = int(lens.sum()), int((lens * lens).sum()), len(lens)
        if mode == "ragged":
            pairs = [(n, n) for n in lens.tolist()]
            return self.rows.prompts(pairs, new, new, quad, 0, 0, 0) / FS_PER_MS
        return self.costs[mode].step(rows, new, new, quad, 0, 0) / FS_PER_MS

    def factor(self, lens: Lens) -> float:
        """Return how many times longer the attention of whole rows takes than evenly shared."""
        terms = self.rows.terms(len(lens))
        attention_ms = terms.attention_fs * int(lens.sum()) / FS_PER_MS
        return (self.decode_ms(lens, "ragged") - terms.fixed_fs / FS_PER_MS) / attention_ms

    def dealt(self, lens: Lens, longest_first: bool) -> float:
        """Return the same of rows dealt out one by one to the CTA that is free first."""
        ctas = self.rows.ctas
        rows = np.repeat(np.sort(lens)[::-1] if longest_first else lens, ctas.kv_heads).tolist()
        loads = [0] * ctas.count
        for row in rows:
            heapq.heapreplace(loads, loads[0] + row)
        return max(loads) * ctas.count / sum(rows)


def mean_of(price: Callable[[Lens], float], mix: Mix, count: int, draws: int = DRAWS) -> float:
    """Return the mean over batches of `count` requests."""
    rng = np.random.default_rng(0)
    return float(np.mean([price(mix(rng, count)) for _ in range(draws)]))


def imbalance(steps: Steps) -> str:
    """Return the table of factors and of what two ways of dealing add."""
    head = " | ".join(map(str, TABLE_BATCHES))
    lines = [rf"| lengths \ requests | {head} |", "|---" * (len(TABLE_BATCHES) + 1) + "|"]
    for name, mix in MIXES.items():
        cells = []
        for count in TABLE_BATCHES:
            bound = mean_of(steps.factor, mix, count, 20)
            ways = [
                mean_of(lambda lens, way=way: steps.dealt(lens, way), mix, count, 20) / bound - 1
                for way in (True, False)
            ]
            cells.append(f"{bound:.2f} +{abs(ways[0]):.0%} +{abs(ways[1]):.0%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -- the picture ----------------------------------------------------------------------------------


def draw(steps: Steps) -> Figure:
    """Draw step times over the spread of lengths, and the imbalance over the batch."""
    figure = Figure(figsize=(10.5, 3.5), layout="constrained")
    decode, prefill, factors = figure.subplots(1, 3)
    spread(decode, steps.decode_ms, DECODES, CONTEXT_TOKENS)
    decode.set_title(f"decode: {DECODES} requests, {CONTEXT_TOKENS:,} tokens each on average")
    spread(prefill, steps.prefill_ms, PROMPTS, PROMPT_TOKENS)
    prefill.set_title(f"prefill: {PROMPTS} prompts of {PROMPT_TOKENS} tokens on average")
    prefill.legend(loc="upper left")
    for (name, mix), mark in zip(MIXES.items(), MARKS, strict=True):
        values = [mean_of(steps.factor, mix, count, 30) for count in BATCHES]
        factors.plot(BATCHES, values, marker=mark, markersize=4, label=name, color="black",
                     linewidth=0.8, markerfacecolor="white")  # fmt: skip
    factors.set(xscale="log", yscale="log", xlabel="requests that decode", ylabel="times longer")
    factors.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    factors.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    factors.minorticks_off()
    factors.set_title("attention of decodes: ragged / evenly shared")
    factors.legend()
    return figure


def spread(axes: Axes, price: Callable[[Lens, str], float], count: int, tokens: int) -> None:
    """Draw a step over the coefficient of variation of its lengths."""
    for mode, line in LINES.items():
        values = [
            mean_of(lambda lens, mode=mode: price(lens, mode), lognormal(tokens, float(cv)), count)
            for cv in CVS
        ]
        axes.plot(CVS, values, label=mode, **line)
    axes.set(xlabel="standard deviation / mean of the lengths", ylabel="step, ms", ylim=(0, None))


# -- runs -----------------------------------------------------------------------------------------


def shown(summary: Mapping[str, Any], key: str, digits: int = 1) -> str:
    """Return a mean with its interval."""
    low, high = (summary[f"{key}_ci_{end}"] for end in ("low", "high"))
    return f"{summary[key]:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


CHAT = {"source": "sharegpt", "max_model_len": 4096}
FLAT = {"source": "uniform", "input_len": {"low": 512, "high": 2048},
        "output_len": {"low": 16, "high": 512}}  # fmt: skip
POLICIES: dict[str, dict[str, Any]] = {
    "static, batches of 16": {"name": "static", "max_batch_size": 16},
    "continuous (v0)": {"name": "continuous", "scheduler": "v0"},
}


def padding() -> str:
    """Return what the modes make of two mixes, at half of what the padded engine can serve."""
    lines = [
        "| lengths, policy, requests/s | engine | mean TTFT ms | mean ITL ms | GPU busy |",
        "|---|---|---|---|---|",
    ]
    for name, workload in {"ShareGPT": CHAT, "U(512,2048)": FLAT}.items():
        for label, policy in POLICIES.items():
            many = workload | {"num_requests": 1000, "arrivals": {"process": "poisson", "rate": 1}}
            rate = round(saturation_rate(experiment(MODES["padded"], many, policy)) / 2, 1)
            many["arrivals"] = {"process": "poisson", "rate": rate}
            for mode, engine in MODES.items():
                found = run(experiment(engine, many, policy), jobs=2).summary
                lines.append(
                    f"| {name}, {label}, {rate} | {mode} | {shown(found, 'mean_ttft_ms', 0)} | "
                    f"{shown(found, 'mean_itl_ms', 2)} | {found['gpu_busy_frac']:.0%} |"
                )
                print(lines[-1], flush=True)
    return "\n".join(lines)


def ablation() -> str:
    """Return our pair at each rate beside the published one."""
    lines = [
        "| requests/s | ITL balanced ms | ITL ragged ms | ragged / balanced | TTFT balanced ms | "
        "TTFT ragged ms | ragged / balanced |",
        "|---|---|---|---|---|---|---|",
    ]
    published = [PUBLISHED[mode] for mode in ("balanced", "ragged")]
    policy = {"name": "continuous", "scheduler": "v0", "max_num_batched_tokens": 16384}
    for rate in RATES_PER_S:
        workload = {
            "source": "uniform", "input_len": {"low": 4096, "high": 16384}, "num_requests": 300,
            "output_len": OUTPUT_TOKENS, "arrivals": {"process": "poisson", "rate": rate},
        }  # fmt: skip
        pair = [
            run(experiment(MODES[mode], workload, policy), jobs=2).summary
            for mode in ("balanced", "ragged")
        ]
        cells = []
        for key, digits in (("mean_itl_ms", 2), ("mean_ttft_ms", 0)):
            cells += [shown(each, key, digits) for each in pair]
            cells.append(f"{pair[1][key] / pair[0][key]:.2f}")
        lines.append(f"| {rate} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    cells = []
    for at, digits in ((0, 2), (1, 0)):
        values = [pair_of[at] for pair_of in published]
        cells += [f"{value:.{digits}f}" for value in values] + [f"{values[1] / values[0]:.2f}"]
    lines.append(f"| *published, rate unknown* | {' | '.join(cells)} |")
    return "\n".join(lines)


def cascade() -> str:
    """Return what reading shared blocks once saves."""
    lines = [
        "| prompts begin with | mean ITL ms, each reads | once | saved |",
        "|---|---|---|---|",
    ]
    for groups, tokens in ((1, 512), (1, 4096), (16, 4096)):
        workload = CHAT | {
            "max_model_len": 16384, "num_requests": 1000,
            "arrivals": {"process": "poisson", "rate": 8},
            "shared_prefix": {"groups": groups, "tokens": tokens, "share": 1.0},
        }  # fmt: skip
        pair = [
            run(
                experiment({"enable_prefix_caching": True, "cascade_attention": once}, workload),
                jobs=2,
            ).summary
            for once in (False, True)
        ]
        cells = [shown(each, "mean_itl_ms", 2) for each in pair]
        saved = 1 - pair[1]["mean_itl_ms"] / pair[0]["mean_itl_ms"]
        of = "the same" if groups == 1 else f"one of {groups}"
        lines.append(f"| {of} {tokens:,} tokens | {' | '.join(cells)} | {saved:.1%} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def parallel() -> str:
    """Return what reading a prompt once saves where it is answered several times at once."""
    lines = [
        "| prompts/s | mean ITL ms, each reads | once | saved |",
        "|---|---|---|---|",
    ]
    for rate in PROMPT_RATES_PER_S:
        itl = [[answers_itl_ms(rate, once, seed) for seed in range(5)] for once in (False, True)]
        saved = student_t([1 - after / before for before, after in zip(*itl, strict=True)])
        cells = [f"{student_t(each).mean:.2f}" for each in itl]
        cells.append(f"{saved.mean:.1%} ({saved.low:.1%} to {saved.high:.1%})")
        lines.append(f"| {rate} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def answers_itl_ms(rate_per_s: float, once: bool, seed: int) -> float:
    """Run 300 prompts, `ANSWERS` answers to each; return the mean inter-token latency."""
    workload = CHAT | {"num_requests": 300 * ANSWERS,
                       "arrivals": {"process": "poisson", "rate": rate_per_s}}  # fmt: skip
    chosen = experiment({"enable_prefix_caching": True, "cascade_attention": once}, workload)
    drawn, longest = requests_of(chosen, seed), int(CHAT["max_model_len"])
    assert drawn.arrival_s is not None
    prompt = np.arange(len(drawn)) // ANSWERS  # every answer has a length of its own
    trace = replace(
        drawn,
        input_len=drawn.input_len[prompt],
        output_len=np.minimum(drawn.output_len, longest - drawn.input_len[prompt]),
        arrival_s=drawn.arrival_s[prompt],
        source=None if drawn.source is None else drawn.source[prompt],
        prefix_group=prompt,
        prefix_len=drawn.input_len[prompt],
    )
    setup = build(chosen, chosen.policies[0])
    rows = simulate(trace, setup.policy, setup.specs, settings(chosen, setup.policy, trace, 0))
    columns = rows.requests
    spent_s = columns["finish_s"] - columns["first_token_s"]
    return float(1e3 * spent_s.sum() / (columns["emitted_tokens"] - 1).sum())


def fill(page: str, name: str, text: str) -> str:
    """Put a table between its marks."""
    begin, end = f"<!-- {name}: make engine-modes -->", f"<!-- end of {name} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Draw, run, write."""
    steps = Steps()
    style = {"axes.spines.right": False, "axes.spines.top": False, "font.size": 8,
             "axes.titlesize": 8.5, "legend.frameon": False}  # fmt: skip
    with mpl.rc_context(style):
        draw(steps).savefig(PICTURE, dpi=110, metadata={"Software": None})
    page = PAGE.read_text()
    page = fill(page, "imbalance", imbalance(steps))
    for made in (padding, ablation, cascade, parallel):
        page = fill(page, made.__name__, made())
    PAGE.write_text(page)
    print(f"wrote {PAGE} and {PICTURE}")


if __name__ == "__main__":
    main()
