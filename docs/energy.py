"""What docs/energy.md shows: `python docs/energy.py`, a minute.

Draws `docs/img/energy.png` (power and energy per token against the batch) and prints the tables:
check points, `examples/energy.yaml` under three power models and three loads, and power caps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.core.records import DECODE, STEP_DTYPE
from sim.costs.power import PowerModel
from sim.study.build import Setup, build
from sim.study.config import load_config, resolve
from sim.study.run import compare, run
from sim.study.statistics.energy import row_energy_j
from sim.study.statistics.metrics import span_seconds

CONFIG = Path(__file__).parent.parent / "examples" / "energy.yaml"
PICTURE = Path(__file__).parent / "img" / "energy.png"
MODEL = "llama-3.1-8b"
CONTEXT_TOKENS = 719
"""Cached tokens of a request half way: ShareGPT's mean 355 in, 728 out."""
BATCHES = 2 ** np.arange(8)
MODELS: dict[PowerModel, dict[str, Any]] = {
    "phase": {"linestyle": "--"},
    "logistic": {"linestyle": "-"},
    "roofline": {"linestyle": ":"},
}
GPUS = {"h100": {"color": "black"}, "a100-80gb": {"color": "#8a8a8a"}}
MEASURED = (
    (64, 0.20, "8B, older vLLM", (0, 5)),
    (64, 0.12, "8B, newer", (20, 4)),
    (1, 2.6, "a 7B", (13, 3)),
    (128, 0.050, "a 7B", (14, -2)),
)
"""Batch, J a token, what, place of its name in points: published for an H100
(spec/neighbours.md section 6)."""
MEASURED_W = ((8, 302, "3B"), (8, 352, "7B"), (8, 378, "8B"))
"""Batch, watts, model: mean board power of an A100-80GB, vLLM with 8 requests in flight, without
the 30 idle seconds of its log (github.com/chuyishang/inference-energy, results_paste.md)."""
RATES = (10, 40, 60)
CAPS_W = (None, 500, 350)
FIGURE = "gpu_energy_j_per_output_token"
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "legend.frameon": False,
}


def main() -> None:
    """Draw the picture and print the tables."""
    with mpl.rc_context(STYLE):
        draw().savefig(PICTURE, dpi=110, metadata={"Software": None})
    check_points()
    policies()
    caps()


def setup_of(gpu: str) -> Setup:
    """Return one GPU with the model on it."""
    experiment = resolve(
        {
            "cluster": {"gpu": gpu, "count": 1, "model": MODEL},
            "policy": "continuous",
            "workload": {"source": "sharegpt", "arrivals": {"process": "all-at-once"}},
        },
        "docs/energy.py",
    )
    return build(experiment, experiment.policies[0])


def decoding(gpu: str, model: PowerModel) -> tuple[np.ndarray, np.ndarray]:
    """Return watts, and joules a token, of decode steps of `BATCHES` requests."""
    setup = setup_of(gpu)
    cost = setup.instances[0].costs.cost
    rows = np.zeros(len(BATCHES), STEP_DTYPE)
    rows["n_steps"], rows["kind"], rows["decode_requests"] = 1, DECODE, BATCHES
    rows["kv_tokens"] = BATCHES * CONTEXT_TOKENS
    rows["first_fs"] = [cost.step(0, 0, 0, 0, b, b * CONTEXT_TOKENS) for b in BATCHES.tolist()]
    assert setup.power is not None
    joules = row_energy_j(rows, model, setup.power.instances[0], span_seconds(rows))
    return joules / span_seconds(rows), joules / BATCHES


def draw() -> Figure:
    """Return power, and energy a token, against the batch."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    power, energy = figure.subplots(1, 2)
    for gpu, colour in GPUS.items():
        for model, line in MODELS.items():
            watts, joules = decoding(gpu, model)
            power.plot(BATCHES, watts, **colour, **line, linewidth=1.4)
            energy.plot(BATCHES, joules, **colour, **line, linewidth=1.4)
    for batch, joules, what, at in MEASURED:
        energy.plot(batch, joules, "o", color="#d9772b", markersize=5, markeredgecolor="black",
                    markeredgewidth=0.5, zorder=3)  # fmt: skip
        energy.annotate(what, (batch, joules), at, textcoords="offset points", ha="center",
                        fontsize=6.5)  # fmt: skip
    for batch, drawn, _ in MEASURED_W:
        power.plot(batch, drawn, "s", color=GPUS["a100-80gb"]["color"], markersize=5,
                   markeredgecolor="black", markeredgewidth=0.5, zorder=3)  # fmt: skip
    power.set(ylabel="watts of one GPU in a decode step", ylim=(0, 720))
    energy.set(ylabel="joules per output token, decode only", yscale="log", ylim=(0.03, 6))
    energy.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5], ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"])
    energy.minorticks_off()
    for axes in (power, energy):
        _batches(axes)
    _legend(figure)
    return figure


def _batches(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.75, 240)
    axes.set_xticks(BATCHES, [str(b) for b in BATCHES])
    axes.minorticks_off()
    axes.set_xlabel(f"requests in the batch ({MODEL}, {CONTEXT_TOKENS} tokens each)")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(figure: Figure) -> None:
    handles = [Line2D([], [], label=gpu, **of, linewidth=3) for gpu, of in GPUS.items()]
    handles += [Line2D([], [], label=m, color="#444444", **of) for m, of in MODELS.items()]
    handles.append(Line2D([], [], label="published, H100", marker="o", color="#d9772b",
                          markeredgecolor="black", markeredgewidth=0.5, linestyle=""))  # fmt: skip
    handles.append(Line2D([], [], label="measured, A100, models of 3B, 7B, 8B", marker="s",
                          **GPUS["a100-80gb"], markersize=5, markeredgecolor="black",
                          markeredgewidth=0.5, linestyle=""))  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=5)


def check_points() -> None:
    """Print joules a token beside what is published."""
    found = {model: decoding("h100", model)[1] for model in MODELS}
    print(f"\n| batch | published | {' | '.join(MODELS)} |")
    print(f"|---|---|{'---|' * len(MODELS)}")
    for batch, joules, what, _ in MEASURED:
        at = BATCHES.tolist().index(batch)
        ours = " | ".join(f"{found[m][at]:.3f}" for m in MODELS)
        print(f"| {batch} | {joules:g} ({what}) | {ours} |")
    watts = {model: decoding("a100-80gb", model)[0] for model in MODELS}
    for batch, drawn, what in MEASURED_W:
        at = BATCHES.tolist().index(batch)
        ours = " | ".join(f"{watts[m][at]:.0f} W" for m in MODELS)
        print(f"| {batch} | {drawn} W ({what}, A100) | {ours} |")
    falls = " | ".join(f"{found[m][0] / found[m][-1]:.0f}x" for m in MODELS)
    print(f"| 1 over 128 | 35-50x | {falls} |")


def policies() -> None:
    """Print the energy of each policy and its difference to the first, by load and power model."""
    for rate in RATES:
        found = {}
        for model in MODELS:
            overrides = [f"power.model={model}", f"workload.arrivals.rate={rate}"]
            found[model] = compare(load_config(CONFIG, overrides), jobs=2)
        print(f"\n{rate} requests/s\n\n| policy | load | SLO | GPU busy | {' | '.join(MODELS)} |")
        print(f"|---|---|---|---|{'---|' * len(MODELS)}")
        for at, result in enumerate(found["logistic"].results):
            label, summary = result.choice.label, result.summary
            cells = [summary["saturation"], f"{summary['slo_attainment']:.0%}"]
            cells.append(f"{summary['gpu_busy_frac']:.0%}")
            for comparison in found.values():
                energy = comparison.results[at].summary[FIGURE]
                against = comparison.differences.get(label, {}).get(FIGURE)
                cells.append(f"{energy:.3g} J" + ("" if against is None else _percent(against)))
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


def _percent(difference: dict[str, float]) -> str:
    low, high = difference["percent_ci_low"], difference["percent_ci_high"]
    return f", {difference['percent']:+.1f} % [{low:+.1f}, {high:+.1f}]"


def caps() -> None:
    """Print what a power cap does to `continuous` at the middle load."""
    print("\n| cap | TTFT mean | TTFT p99 | TPOT mean | GPU power, all | energy per request | "
          "provisioned |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for cap_w in CAPS_W:
        overrides = ["policy=continuous", f"workload.arrivals.rate={RATES[1]}"]
        if cap_w is not None:
            overrides.append(f"power.cap_w={cap_w}")
        summary = run(load_config(CONFIG, overrides), jobs=2).summary
        cells = ["none" if cap_w is None else f"{cap_w} W"]
        keys = {"mean_ttft_ms": "ms", "p99_ttft_ms": "ms", "mean_tpot_ms": "ms"}
        keys |= {"gpu_power_w": "W", "gpu_energy_j_per_request": "J", "provisioned_power_w": "W"}
        for key, unit in keys.items():
            half = (summary[f"{key}_ci_high"] - summary[f"{key}_ci_low"]) / 2
            spread = f" ± {half:.2g}" if half else ""
            cells.append(f"{summary[key]:.4g}{spread} {unit}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
