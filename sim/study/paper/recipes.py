"""Recipes of figures: what a figure of the paper is made from, and the tasks that make it.

A recipe is a YAML of `results/figures`, named after its figure. It overrides `_paper.yaml`, the
paper set: policies, a config (`set`), further keys for one policy (`by_policy`), a sweep, and what
is drawn. A key of `set` is dotted and sets its whole value. Each figure has a *twin*, the same
recipe on an engine that does not pad (`padding_free` of the paper set), unless it says `twin:
false`.

The tasks of a figure are those of a sweep for each policy; all figures share one folder of shards,
named by content, so that what two figures need runs once, and a changed recipe runs only what it
changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

import policies as registry
import sim
from sim.study.config import KEYS, set_key
from sim.study.config.section import Section
from sim.study.sweeps.config import SECTION, SweepConfig, SweepOptions
from sim.study.sweeps.shards import Task
from sim.study.sweeps.sweep import Sweep, SweepPoint, plan_data
from sim.study.validation import shown, unknown_key, validate
from sim.study.yaml_file import read_yaml
from sim.types import BadInput

FOLDER = Path("results/figures")
PAPER_SET = "_paper"
REPORT = tuple(f"report/recipe_{part}.py" for part in ("figures", "kinds", "parts"))
DRAWN_BY = ("study/paper/figure_data.py", "study/paper/figure_models.py", *REPORT)
"""Code whose change has the pictures drawn again."""
TWIN = "-twin"
"""What the name of a figure's twin ends in."""

Draw = Literal["curve", "offline", "bars", "histogram", "utilisation", "breakdown", "overhead"]


class AxisText(Section):
    """One axis."""

    key: str | None = Field(None, description="config key along it")
    figure: str | None = Field(None, description="key of the summary along it")
    label: str = Field(description="what it says, with unit")
    log: bool = Field(False, description="logarithmic, base 2")
    factor: float = Field(1.0, gt=0, description="on what is drawn, 100 for per cent")


class Bins(Section):
    """Of a histogram."""

    upto: float = Field(gt=0, description="end of the last bin, in the unit of the axis")
    width: float = Field(gt=0, description="of a bin")


Overrides = dict[str, Any]


class Overriding(Section):
    """What overrides a config."""

    set: Overrides = Field({}, description="dotted config key -> value")
    by_policy: dict[str, Overrides] = Field({}, description="the same for one policy")

    @field_validator("set", "by_policy")
    @classmethod
    def _known(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        for name, given in value.items() if info.field_name == "by_policy" else ():
            if name not in registry.names():
                raise ValueError(unknown_key(name, registry.names()))
            _check_keys(given)
        if info.field_name == "set":
            _check_keys(value)
        return value


class PaperSet(Overriding):
    """The paper set: what every recipe starts from."""

    policies: tuple[str, ...] = Field(description="names, in the order drawn")
    padding_free: Overriding = Field(Overriding(), description="what a twin has on top")
    seeds: int = Field(5, ge=1, description="replications of a point")
    assumptions: tuple[str, ...] = Field((), description="of the caption, for every figure")
    assumptions_of: dict[str, str] = Field({}, description="those about one policy, if it is drawn")


class Recipe(Overriding):
    """One figure."""

    title: str = Field(description="above the figure")
    draw: Draw = Field(description="the kind of picture")
    policies: tuple[str, ...] | None = Field(None, description="others than the paper set's")
    sweep: dict[str, Any] = Field({}, description="what varies, as in the config of a sweep")
    x: AxisText | None = Field(None, description="axis of what varies")
    y: AxisText = Field(description="axis of what comes out")
    classes: dict[str, str] = Field({}, description="curve: a panel for each class -> its title")
    groups: dict[str, str] = Field({}, description="bars: key of the summary -> what it is called")
    names: dict[str, str] = Field({}, description="utilisation: mixture -> what it is called")
    paper_at: dict[str, str] = Field({}, description="bars: x of the paper -> key of `groups`")
    target: float | None = Field(None, description="a level to mark, in the unit of the axis")
    ideal: bool = Field(False, description="mark where y equals x")
    source: str | None = Field(None, description="histogram: whose prompt lengths")
    samples: int = Field(1000, ge=1, description="histogram: prompts drawn in a replication")
    chars_per_token: float = Field(1.0, gt=0, description="histogram: characters of a token")
    bins: Bins | None = Field(None, description="histogram: its bins")
    batch_sizes: tuple[int, ...] = Field((), description="utilisation: sizes of random batches")
    seeds: int | None = Field(None, ge=1, description="other than the paper set's")
    twin: bool = Field(True, description="whether there is a twin")
    assumptions: tuple[str, ...] = Field((), description="of the caption, for this figure")


@dataclass(frozen=True)
class Figure:
    """A figure and its tasks.

    Attributes:
        name: of the figure; a twin's ends in `TWIN`.
        source: file of its recipe.
        recipe: what is drawn.
        twin: whether the engine does not pad.
        seeds: replications.
        assumptions: of the caption, one line each.
        points: of every policy, in their order.
        tasks: by name.
    """

    name: str
    source: str
    recipe: Recipe
    twin: bool
    seeds: int
    assumptions: tuple[str, ...]
    points: tuple[SweepPoint, ...]
    tasks: Mapping[str, Task]

    @property
    def paper_name(self) -> str:
        """Name of the paper's figure."""
        return self.name.removesuffix(TWIN)

    def identity(self) -> str:
        """Return a hash of the recipe and the tasks: equal for equal data."""
        about = [self.name, self.seeds, self.recipe.model_dump(mode="json"), self.assumptions]
        text = json.dumps([*about, list(self.tasks)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(figure: Figure, paper: str | None) -> str:
    """Return a hash of all that decides a picture: data, recipe, the paper's numbers, the code."""
    code = hashlib.sha256()
    package = Path(sim.__file__).parent
    for name in DRAWN_BY:
        code.update((package / name).read_bytes())
    about = [figure.identity(), paper, sim.__version__, code.hexdigest()]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


# -- reading ------------------------------------------------------------------------------------


def recipe_names(folder: Path = FOLDER) -> list[str]:
    """Return the figures that have a recipe.

    Raises:
        BadInput: there is none.
    """
    names = sorted(path.stem for path in folder.glob("*.yaml") if path.stem != PAPER_SET)
    if not names:
        raise BadInput(f"folder {folder}: there is no recipe; start in the root of the repository")
    return names


def read_paper_set(folder: Path = FOLDER) -> PaperSet:
    """Read the paper set.

    Raises:
        BadInput: it is not there, or a key is not valid.
    """
    found: PaperSet = read_section(PaperSet, folder / f"{PAPER_SET}.yaml")
    return found


def read_recipe(name: str, folder: Path = FOLDER) -> Recipe:
    """Read the recipe of a figure.

    Raises:
        BadInput: it is not there, or a key is not valid.
    """
    found: Recipe = read_section(Recipe, folder / f"{name}.yaml")
    return found


def plan_figures(
    names: Sequence[str], folder: Path = FOLDER, seeds: int | None = None, twins: bool = True
) -> list[Figure]:
    """Read recipes and validate every point of them.

    Args:
        names: of figures (with their twins) or of twins; none: all there are.
        folder: of the recipes.
        seeds: replications of every point; None: as the recipes say.
        twins: whether figures come with their twins.

    Raises:
        BadInput: one line with file, key or name, and what would be valid.
    """
    known = recipe_names(folder)
    for name in names:
        if name.removesuffix(TWIN) not in known:
            valid = ", ".join(known)
            raise BadInput(f"no figure {name!r}; valid: {valid}, each also with {TWIN}")
    base = read_paper_set(folder)
    figures: dict[str, Figure] = {}
    for name in names or known:
        stem = name.removesuffix(TWIN)
        path = folder / f"{stem}.yaml"
        recipe = read_recipe(stem, folder)
        if name != stem and not recipe.twin:
            raise BadInput(f"{path}: figure {stem!r} has no twin (twin: false)")
        if name == stem:
            figures[stem] = _planned(stem, path, base, recipe, False, seeds)
        if name != stem or (twins and recipe.twin):
            figures[stem + TWIN] = _planned(stem + TWIN, path, base, recipe, True, seeds)
    return list(figures.values())


def merged(figures: Iterable[Figure]) -> Sweep | None:
    """Return the tasks of several figures as one sweep, long tasks first; None: there is none."""
    sweeps = list(figures)
    tasks = {name: task for figure in sweeps for name, task in figure.tasks.items()}
    if not tasks:
        return None
    ordered = sorted(tasks.values(), key=lambda task: (-expected_requests(task), task.name))
    data = {"figures": [figure.name for figure in sweeps]}
    points = tuple(point for figure in sweeps for point in figure.points)
    nothing = SweepConfig(SweepOptions(), (), {})
    return Sweep("figures", data, nothing, False, points, {t.name: t for t in ordered})


def expected_requests(task: Task) -> float:
    """Return about how many requests a task simulates."""
    workload = json.loads(task.config)["workload"]
    if workload["num_requests"] is not None:
        return float(workload["num_requests"])
    return float(workload["duration_s"] * workload["arrivals"]["rate"])


# -- planning -----------------------------------------------------------------------------------


def config_of(
    base: PaperSet, recipe: Overriding, policy: str, twin: bool, between: Sequence[Overriding] = ()
) -> dict[str, Any]:
    """Return the config of one policy of a figure, as plain data without its sweep.

    Args:
        base: the paper set.
        recipe: of the figure; it overrides all.
        policy: its name.
        twin: whether the engine does not pad.
        between: what overrides the paper set, below the recipe.
    """
    layers: list[Overriding] = [base, *([base.padding_free] if twin else []), *between, recipe]
    data: dict[str, Any] = {"policy": {"name": policy}}
    for given in [layer.set for layer in layers] + [
        layer.by_policy.get(policy, {}) for layer in layers
    ]:
        for key, value in given.items():
            set_key(data, key, deepcopy(value))
    return data


def _planned(
    name: str, path: Path, base: PaperSet, recipe: Recipe, twin: bool, asked: int | None
) -> Figure:
    seeds = asked or recipe.seeds or base.seeds
    points: list[SweepPoint] = []
    tasks: dict[str, Task] = {}
    chosen = base.policies if recipe.policies is None else recipe.policies
    for policy in chosen:
        data = config_of(base, recipe, policy, twin)
        set_key(data, "run.replications", seeds)
        swept = plan_data(data | {SECTION: deepcopy(recipe.sweep)}, str(path))
        points += swept.points
        tasks |= swept.tasks
    assumptions = [*recipe.assumptions, *(base.assumptions if chosen else ())]
    assumptions += [base.assumptions_of[p] for p in chosen if p in base.assumptions_of]
    return Figure(name, str(path), recipe, twin, seeds, tuple(assumptions), tuple(points), tasks)


def read_section(model: type[Any], path: Path, key: str = "recipe") -> Any:
    """Return a file of one section; `key` is what messages call it.

    Raises:
        BadInput: one line with file, key and what would be valid.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a mapping with {', '.join(model.model_fields)}")
    for name in data:
        if name not in model.model_fields:
            raise BadInput(f"{path}: {unknown_key(str(name), model.model_fields)}")
    return validate(model, data, key, lambda _key: str(path))


def _check_keys(given: Any) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"expected dotted config keys and their values, got {shown(given)}")
    for key in given:
        first = str(key).partition(".")[0]
        if first not in KEYS:
            raise ValueError(unknown_key(first, KEYS))
