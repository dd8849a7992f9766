"""Which wheel is built, and what is changed in the copy of the tree it is built from."""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from forms import ROOT

pytest.importorskip("setuptools")


@pytest.fixture
def backend():
    path = ROOT / "build_backend" / "compiled.py"
    spec = importlib.util.spec_from_file_location("compiled_backend", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_compiler_means_a_pure_wheel_unless_asked(backend, monkeypatch):
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert backend._form(None) == "pure"
    assert backend._form({"form": "pure"}) == "pure"
    assert not any("mypy" in need for need in backend.get_requires_for_build_wheel(None))
    with pytest.raises(ValueError, match="form=compiled: no C compiler: '/no/such/compiler'"):
        backend._form({"form": "compiled"})


def test_a_pure_wheel_for_want_of_a_compiler_is_told(backend, monkeypatch, capsys):
    monkeypatch.setenv("CC", "/no/such/compiler")
    monkeypatch.setattr(backend.build_meta, "build_wheel", lambda *_: "pure.whl")
    assert backend.build_wheel("here") == "pure.whl"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "bucketsim: the core is not compiled: no C compiler: '/no/such/compiler'"
    )
    assert backend.build_wheel("here", {"form": "pure"}) == "pure.whl"
    assert capsys.readouterr().err == ""


def test_a_compiler_means_a_compiled_wheel_unless_asked(backend, monkeypatch):
    monkeypatch.setattr(backend, "why_not", lambda: None)
    assert backend._form(None) == "compiled"
    # In an isolated build there is nothing else, and an import without types ends it.
    assert "types-PyYAML" in backend.get_requires_for_build_wheel(None)
    assert backend._form({"form": "pure"}) == "pure"


def test_an_unknown_form(backend):
    with pytest.raises(ValueError, match="form=fast: unknown form; valid: auto, pure, compiled"):
        backend._form({"form": "fast"})


def test_all_of_the_core_is_compiled(backend):
    found = backend.sources(ROOT)
    assert {"sim/core/instance.py", "sim/costs/model.py", "policies/continuous.py"} <= set(found)
    assert not set(found) & backend.LEFT_OUT
    assert all((ROOT / name).exists() for name in (*found, *backend.LEFT_OUT))


def test_config_models_stay_interpreted_and_marks_become_names(backend, tmp_path):
    name = "policies/static.py"
    path = tmp_path / "static.py"
    path.write_text((ROOT / name).read_text())
    models = tmp_path / "interpreted"
    models.mkdir()
    backend._prepare(path, name, models)
    text = path.read_text()
    assert "from policies.interpreted.static import StaticConfig as StaticConfig" in text
    assert "class StaticConfig" not in text
    assert "@policy(" not in text
    assert "    name = 'static'" in text
    assert (models / "static.py").read_text() == (ROOT / name).read_text()


def test_a_script_beside_a_folder_of_the_same_name_finds_the_package():
    """`docs/policies` holds pages; a script in `docs` still imports the package `policies`."""
    code = "import policies; print(policies.load.__module__)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "policies", ran.stderr


@pytest.mark.slow
def test_a_source_distribution_holds_what_builds_it(backend, tmp_path, monkeypatch):
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "results", "tests", "docs", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    monkeypatch.chdir(copy)
    name = backend.build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / name) as archive:
        held = {Path(*Path(member).parts[1:]).as_posix() for member in archive.getnames()}
    assert {"setup.py", "build_backend/compiled.py", "build_backend/multiply.h"} <= held
    assert set(backend.sources(ROOT)) <= held


def test_the_header_that_the_compiler_is_told_of_is_there(backend):
    header = Path(backend.FLAGS[-1])
    assert header.is_file()
    assert "__builtin_mul_overflow" in header.read_text()
