"""What the results in a folder are to be cited with: policies, model, profile, data, bucketsim."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import policies
from sim.costs.library import list_profiles
from sim.study.bibliography import ENTRIES, cited_in
from sim.study.config import ABOUT, NOTHING_ASKED
from sim.study.policy_facts import section
from sim.study.yaml_file import read_yaml
from sim.types import BadInput
from workloads.config import MIXED
from workloads.lengths.parametric import PARAMETRIC
from workloads.sources import DEFAULT_MIXTURE

Found = Iterator[tuple[str, list[str]]]
"""Things used, each with the keys of its entries."""

MODELS = {
    "opt-": "zhang2022opt",
    "llama-2-": "touvron2023llama2",
    "llama-3.1-": "grattafiori2024llama3",
    "llama-3.2-": "grattafiori2024llama3",
    "llama-68m": "miao2024specinfer",
    "qwen2.5-": "qwen2024qwen25",
    "qwen3-": "qwen2025qwen3",
    "codellama-": "roziere2023codellama",
    "mistral-": "jiang2023mistral",
    "tiny-llama": "touvron2023llama2",  # the architecture; no checkpoint
}
"""How the names of a family begin -> key."""

DATA_SETS = {
    "alpaca": ("taori2023alpaca",),
    "sharegpt": ("sharegpt",),
    "longbench": ("bai2024longbench",),
    "arxiv": ("cohan2018discourse", "agrawal2024vidur"),
    "azure": ("patel2024splitwise", "stojkovic2025dynamollm"),  # traces of 2023, of 2024
    "mooncake": ("qin2025mooncake",),
    "burstgpt": ("wang2025burstgpt",),
    "splitwise": ("patel2024splitwise",),
    "vidur": ("agrawal2024vidur",),
    "llmservingsim": ("cho2024llmservingsim",),
}
"""Part of the name of a built-in source or a file, or format -> keys."""

ENERGY = "gpu_energy_j"
"""Figure of a summary that has energy."""

POWER = {
    "phase": ("patel2024splitwise",),
    "logistic": ("patel2024splitwise", "vllmsemanticrouter"),
    "mfu": ("ozcan2025quantifying",),
    "roofline": ("patel2024splitwise",),  # the constants it is fitted to
}
"""Power model -> keys."""

DRAFTING = {
    "draft_model": (),
    "eagle": ("li2024eagle",),
    "medusa": ("cai2024medusa",),
    "ngram": (),
    "drafter_pool": ("gao2025cosine",),
}
"""Method of drafting -> keys beside that of the measured rates and times."""


@dataclass(frozen=True)
class Citations:
    """What to cite.

    Attributes:
        entries: BibTeX, bucketsim itself last.
        missing: what was used and has no entry.
    """

    entries: tuple[str, ...]
    missing: tuple[str, ...]


def citations(folder: Path) -> Citations:
    """Return what the results of `run` or `compare` in a folder are to be cited with.

    Raises:
        BadInput: it is no such folder.
    """
    below = "*/config.yaml" if (folder / "comparison.json").is_file() else "config.yaml"
    paths = sorted(folder.glob(below))
    if not paths:
        raise BadInput(f"{folder}: no config.yaml; expected a folder that run or compare wrote")
    configs = [_config(path) for path in paths]
    counted = [_has_energy(path.with_name("summary.json")) for path in paths]
    found = {
        thing: keys
        for config, energy in zip(configs, counted, strict=True)
        for thing, keys in _used(config, energy)
    }
    used = {key for keys in found.values() for key in keys}
    return Citations(
        entries=(*(ENTRIES[key] for key in ENTRIES if key in used), _bucketsim(configs[0])),
        missing=tuple(thing for thing, keys in found.items() if not keys),
    )


def _config(path: Path) -> dict[str, Any]:
    config = read_yaml(path)
    sections = {"policy": list, "cluster": dict, "workload": dict, ABOUT: dict}
    for name, kind in sections.items():
        if not isinstance(config, dict) or not isinstance(config.get(name), kind):
            raise BadInput(f"{path}: {name}: not as run or compare write it")
    return dict(config)


def _has_energy(path: Path) -> bool:
    """Whether a summary has figures of energy: it has where power is known, asked for or not."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and ENERGY in summary


def _used(config: Mapping[str, Any], energy: bool = False) -> Found:
    """Yield what a result used; `energy`: it has figures of it."""
    yield from _policies(config["policy"])
    model = str(config["cluster"].get("model"))
    yield f"model {model}", [key for start, key in MODELS.items() if model.startswith(start)]
    yield from _profiles(config[ABOUT].get("profiles") or {})
    yield from _data_sets(config["workload"])
    yield from _attention(config.get("engine") or {})
    if config.get("speculative"):
        yield from _speculation(config["speculative"])
    if energy or config.get("power"):
        model = str((config.get("power") or {}).get("model", NOTHING_ASKED.model))
        yield f"power model {model}", list(POWER.get(model, ()))


def _policies(entries: list[Any]) -> Found:
    for entry in entries:
        name = str(entry.get("name") if isinstance(entry, dict) else entry)
        known = name in policies.names()
        yield f"policy {name}", cited_in(section(policies.load(name), "Reference")) if known else []


def _profiles(names: Mapping[str, Any]) -> Found:
    sources = {p.name: p.source for p in list_profiles()}
    for name in names:
        if "roofline" not in name:  # computed from peak figures
            yield f"profile {name}", cited_in(sources.get(name, ""))


def _attention(engine: Mapping[str, Any]) -> Found:
    mode = engine.get("attention", "fitted")
    if mode != "fitted" or engine.get("cascade_attention"):
        yield f"attention {mode}", ["ye2025flashinfer"]


def _speculation(config: Mapping[str, Any]) -> Found:
    method = str(config.get("method"))
    keys = list(DRAFTING.get(method, ()))
    if method != "drafter_pool":
        keys.append("liu2026illusion")
    if config.get("control") == "goodput":
        keys.append("liu2024smartspec")
    yield f"drafts by {method}", keys


def _data_sets(workload: Mapping[str, Any]) -> Found:
    source = str(workload.get("source"))
    names = [source]
    if source in MIXED:
        names = list(workload.get("mixture") or DEFAULT_MIXTURE)
    for name in names:
        if name not in PARAMETRIC:
            yield f"data set {name}", _of_data(name, str(workload.get("format")))


def _of_data(name: str, format: str) -> list[str]:
    """Return the keys of a built-in source, or of a file by its name or its format."""
    word = Path(name).name.lower()
    found = [part for text in (word, format) for part in DATA_SETS if part in text]
    keys = DATA_SETS[found[0]] if found else ()
    if "azure" in found and ("2023" in word) != ("2024" in word):
        keys = keys[:1] if "2023" in word else keys[1:]
    return list(keys)


def _bucketsim(config: Mapping[str, Any]) -> str:
    """Return the entry of this program (`CITATION.cff`) as it was when the results were made."""
    about = config[ABOUT]
    fields = {
        "title": "bucketsim: a discrete-event simulator of {LLM} serving clusters",
        "author": "{The bucketsim authors}",
        "version": about.get("bucketsim"),
        "note": about.get("git_revision") and f"revision {about['git_revision']}",
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join(["@software{bucketsim,", *lines, "}"])
