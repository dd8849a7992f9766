"""The pages on policies name what there is, and the scripts of the pages import it."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import policies

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = [
    (page, *match.groups())
    for page in sorted((DOCS / "policies").glob("*.md"))
    for match in re.finditer(r"^## `(.*?)`\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)
]
PARTS = ("Idea.", "Decision rule.", "Parameters", "Assumes", "When to choose it.")


@pytest.mark.parametrize(("page", "name", "text"), SECTIONS, ids=[s[1] for s in SECTIONS])
def test_a_section_says_all_it_should(page, name, text):
    for part in PARTS:
        assert f"**{part}**" in text, part
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures == [f"../img/policies/{name}.png"]
    assert (page.parent / pictures[0]).stat().st_size < 60 * 1024


@pytest.mark.parametrize(("page", "name", "text"), SECTIONS, ids=[s[1] for s in SECTIONS])
def test_the_parameters_it_names_exist(page, name, text):
    named = re.search(r"\*\*Parameters\*\*(.*?)\n\n", text, re.S)[1]
    assert f"`bucketsim policies {name}`" in " ".join(named.split())
    words = set(re.findall(r"`([a-z_0-9]+)`", named)) - set(policies.names())
    assert words <= set(policies.load(name).Config.model_fields)


def test_a_policy_has_one_section():
    names = [name for _, name, _ in SECTIONS]
    assert len(names) == len(set(names)) >= 10


@pytest.mark.parametrize("script", sorted(DOCS.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_import_what_there_is(script):
    """They are run by hand: nobody else would notice."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("sim", "policies"):
            module = import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    import_module(f"{node.module}.{alias.name}")
