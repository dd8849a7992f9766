"""Build backend: setuptools, and mypyc over the core where a C compiler is there.

One source tree gives two kinds of wheel. `pip install .` compiles if it can; otherwise, and for
`pip install -e .`, the files run interpreted. `-C form=pure` and `-C form=compiled` decide, the
latter failing where it cannot be done. A compiled wheel holds the Python files as well.

Pydantic cannot look into compiled classes. So the build works on a copy of the tree, in which the
config models of the policies are imported from interpreted copies of their files, and the mark
`@policy("name")` is the class attribute it stands for. Nothing else differs from the sources.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

FORMS = ("auto", "pure", "compiled")
COMPILER = [
    *("mypy==2.4.1", "types-PyYAML"),
    *("pydantic>=2.7,<3", "numpy>=2.0,<3", "simpy==4.1.2"),
]
"""mypyc and what the compiled files import: it reads their types, of files they import as well."""

FOLDERS = ("sim/types", "sim/core", "policies", "policies/parts")
COSTS = ("simple", "model", "terms")
"""The pricing part of `sim/costs`: what runs while a simulation runs."""

LEFT_OUT = {
    "sim/types/errors.py",  # exceptions: no native classes
    "sim/core/yardstick.py",  # the benchmark's unit is interpreted SimPy
    "policies/__init__.py",  # finds policies by the files beside it
    "policies/base.py",  # Pydantic models
}

COPIED = ("sim", "policies", "workloads", "calibrate")
COPIED_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
MODELS = "interpreted"
"""Package inside `policies`, only in a compiled wheel: where config models are imported from."""

FUTURE = "from __future__ import annotations"

OPT_LEVEL = "1"
"""Of the C compiler; 2 takes twice as long and gains little: most of the time goes to CPython."""

FLAGS = ["-w", "-fvisibility=hidden", "-include", str(Path(__file__).with_name("multiply.h"))]
"""No warnings about code that nobody wrote (looking for them takes as long as compiling), and calls
within the library that nothing can intercept."""

EDITABLE = {"editable_mode": "compat"}
"""A line in a .pth file; setuptools' own finder comes after folders that are no packages, and a
script beside `docs/policies` would import that."""

compiling = False
"""Whether a compiled wheel is being built; read by `extensions`."""


def build_editable(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build what `pip install -e` installs: a path to this tree; return the file's name."""
    settings = EDITABLE | dict(config_settings or {})
    name: str = build_meta.build_editable(wheel_directory, settings, metadata_directory)
    return name


def sources(root: Path) -> list[str]:
    """Return the files that are compiled."""
    found = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.py"))]
    found += [root / "sim/costs" / f"{name}.py" for name in COSTS]
    names = [path.relative_to(root).as_posix() for path in found]
    return [name for name in names if name not in LEFT_OUT]


def why_not() -> str | None:
    """Return what is missing for compiling; None: nothing."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler: {compiler!r} is not on the PATH"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return f"no Python.h in {sysconfig.get_paths()['include']}"
    return None


def extensions() -> list[Any]:
    """Return the extension modules for `setup.py`: none in the pure form.

    Two libraries, which two processors compile side by side.
    """
    if not compiling:
        return []
    from mypyc.build import mypycify

    names = sources(Path.cwd())
    groups: list[tuple[list[str], str | None]] = [
        ([name for name in names if name.startswith("policies/") == policies], library)
        for policies, library in ((False, "bucketsim_core"), (True, "bucketsim_policies"))
    ]
    modules = list(mypycify(names, opt_level=OPT_LEVEL, debug_level="0", separate=groups))
    for module in modules:
        if any("__native" in source for source in module.sources):
            extra = FLAGS if os.name == "posix" else []
            module.extra_compile_args = [*module.extra_compile_args, *extra]
    return modules


@contextmanager
def _staged() -> Iterator[None]:
    """Work in a copy of the tree that mypyc can compile."""
    root = Path.cwd()
    stage = root / "build" / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    for name in COPIED:
        shutil.copytree(root / name, stage / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED_FILES:
        shutil.copy(root / name, stage)
    models = stage / "policies" / MODELS
    models.mkdir()
    (models / "__init__.py").touch()
    for name in sources(stage):
        if name.startswith("policies/"):
            _prepare(stage / name, name, models)
    os.chdir(stage)
    try:
        yield
    finally:
        os.chdir(root)


def _prepare(path: Path, name: str, models: Path) -> None:
    """Change one policy file of the copy, if it holds what mypyc cannot compile."""
    text = path.read_text()
    stem = name.removeprefix("policies/").removesuffix(".py").replace("/", "_")
    lines = text.splitlines()
    moved = marked = False
    for node in reversed(ast.parse(text).body):  # from the end: line numbers stay right
        if not isinstance(node, ast.ClassDef):
            continue
        first = min([node.lineno, *[mark.lineno for mark in node.decorator_list]]) - 1
        if any(isinstance(base, ast.Name) and base.id.endswith("Config") for base in node.bases):
            imported = f"from policies.{MODELS}.{stem} import {node.name} as {node.name}"
            lines[first : node.end_lineno] = [imported]
            moved = True
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "policy":
                docstring_end = node.body[0].end_lineno or node.lineno
                lines.insert(docstring_end, f"    name = {ast.unparse(mark.args[0])}")
                lines[mark.lineno - 1] = "@mypyc_attr(allow_interpreted_subclasses=True)"
                marked = True
    if marked:
        lines.insert(lines.index(FUTURE) + 1, "from mypy_extensions import mypyc_attr")
    if moved:
        (models / f"{stem}.py").write_text(text)
    path.write_text("\n".join(lines) + "\n")


def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    """Return what a wheel's build needs besides setuptools."""
    needed = list(build_meta.get_requires_for_build_wheel(_rest(config_settings)))
    return needed if _form(config_settings) == "pure" else [*needed, *COMPILER]


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a platform wheel if the core can be compiled, else a pure one."""
    rest = _rest(config_settings)
    if _form(config_settings) == "compiled":
        try:
            return _build_compiled(str(Path(wheel_directory).resolve()), rest)
        except (Exception, SystemExit) as error:
            if (config_settings or {}).get("form") == "compiled":
                raise
            why = "mypyc has errors, see above" if isinstance(error, SystemExit) else error
            print(f"bucketsim: the core is not compiled: {why}", file=sys.stderr)
    elif (config_settings or {}).get("form", "auto") == "auto":
        print(f"bucketsim: the core is not compiled: {why_not()}", file=sys.stderr)
    return build_meta.build_wheel(wheel_directory, rest, metadata_directory)


def _build_compiled(wheel_directory: str, config_settings: dict[str, Any] | None) -> str:
    global compiling
    compiling = True
    try:
        with _staged():
            return build_meta.build_wheel(wheel_directory, config_settings)
    finally:
        compiling = False


def _form(config_settings: Mapping[str, Any] | None) -> str:
    """Return `pure` or `compiled`; raise `ValueError` for a form that cannot be had."""
    form = (config_settings or {}).get("form", "auto")
    if form not in FORMS:
        raise ValueError(f"-C form={form}: unknown form; valid: {', '.join(FORMS)}")
    missing = None if form == "pure" else why_not()
    if missing and form == "compiled":
        raise ValueError(f"-C form=compiled: {missing}")
    return "pure" if missing or form == "pure" else "compiled"


def _rest(config_settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {k: v for k, v in (config_settings or {}).items() if k != "form"} or None
