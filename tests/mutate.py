"""Flips single lines of the engine and the policies; the tests must notice every flip.

    python tests/mutate.py            all of them, two at a time (about two minutes)
    python tests/mutate.py NAME ...   those whose name contains a word

Each mutation is applied to a copy of the repository in a temporary folder, and the fastest tests
that should notice run there against the copy. It is caught when at least one test fails; a
collection error, a crash of pytest or a hang is not "caught". First the same tests run on an
unchanged copy, where all must pass. A mutation whose text is no longer in the source exactly once
is an error: whoever changed the line says in `mutations.py` what it has become.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mutations import ENGINE, Mutation
from policy_mutations import POLICIES
from study_mutations import STUDIES

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("sim", "policies", "workloads", "tests", "docs", "pyproject.toml")
AT_A_TIME = 2
MUTATIONS = (*ENGINE, *POLICIES, *STUDIES)
TIMEOUT_S = 120


def copy_to(folder: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy2(source, folder / name)


@contextmanager
def copied() -> Iterator[Path]:
    """A fresh copy of the repository, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy_to(Path(folder))
        yield Path(folder)


def python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run python in the copy, importing the copy's packages."""
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def pytest(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy, after making sure that they would import it."""
    where = "import sim, policies; print(sim.__file__, policies.__file__)"
    found = python(folder, "-c", where).stdout.split()
    if not found or not all(Path(file).is_relative_to(folder.resolve()) for file in found):
        raise SystemExit(f"the tests would import {found}, not the copy in {folder}")
    return python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args)


def line_of(mutation: Mutation) -> int:
    """Return the line of the mutation; an error if its text is not there exactly once."""
    text = (ROOT / mutation.path).read_text()
    count = text.count(mutation.old)
    if count != 1:
        raise SystemExit(
            f"mutation {mutation.name!r}: its text stands {count} times in {mutation.path}, "
            f"not once: {mutation.old!r}"
        )
    return text[: text.index(mutation.old)].count("\n") + 1


def caught_by(mutation: Mutation) -> str | None:
    """Return the first test that notices the mutation; None if it survives."""
    with copied() as folder:
        path = folder / mutation.path
        path.write_text(path.read_text().replace(mutation.old, mutation.new))
        try:
            done = pytest(folder, "-x", "-r", "f", *mutation.tests)
        except subprocess.TimeoutExpired:
            return None
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    return failed[1] if done.returncode == 1 and failed else None


def check_unchanged(mutations: list[Mutation]) -> None:
    """Assert that the tests pass without any mutation."""
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    with copied() as folder:
        done = pytest(folder, *tests)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:])
        raise SystemExit("the tests fail without any mutation")


def _names() -> str:
    return ", ".join(mutation.name for mutation in MUTATIONS)


def main(words: list[str]) -> int:
    """Run the mutations whose names contain one of `words` (all without words)."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    if not chosen:
        raise SystemExit(f"no mutation is called {' or '.join(words)}; valid: {_names()}")
    lines = [line_of(mutation) for mutation in chosen]
    check_unchanged(chosen)
    survived = 0
    print(f"{'mutation':46} {'where':32} caught by")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        results = pool.map(caught_by, chosen)
        for mutation, line, test in zip(chosen, lines, results, strict=True):
            survived += test is None
            where = f"{mutation.path}:{line}"
            print(f"{mutation.name:46} {where:32} {test or 'NOTHING: it survives'}", flush=True)
    print(f"{len(chosen) - survived} passed, {survived} failed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
