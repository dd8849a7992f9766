"""`make wheelhouse`: with what a GPU machine has, it is all that bucketsim needs there."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
THERE = {"torch", "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "rich", "typer", "pyyaml"}
"""Installed where a GPU is lent and nothing can be downloaded."""


def needed(names, found):
    """Add the packages and what they need, except for what is there."""
    for name in names - THERE - found:
        found.add(name)
        inner = [Requirement(text) for text in requires(name) or ()]
        wanted = {r.name for r in inner if r.marker is None or r.marker.evaluate({"extra": ""})}
        needed({canonicalize_name(name) for name in wanted}, found)
    return found


def test_the_wheels_are_all_that_is_missing():
    recipe = re.search(r"^wheelhouse: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    collected = {canonicalize_name(name) for name in recipe.rpartition("-d wheelhouse")[2].split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert collected - {"\\"} == needed(direct, set())
