"""Which form of the core runs, and what is said about one that cannot."""

from pathlib import Path

from sim.form import core_form, unusable


def test_nothing_to_say_without_compiled_modules():
    assert core_form() in ("interpreted", "compiled")
    assert unusable() is None


def test_modules_of_another_python_are_named(tmp_path: Path):
    folder = tmp_path / "sim" / "core"
    folder.mkdir(parents=True)
    (folder / "instance.py").touch()
    assert unusable(tmp_path) is None
    (folder / "instance.cpython-399-x86_64-linux-gnu.so").touch()
    line = unusable(tmp_path)
    assert line is not None
    assert f"the compiled core in {tmp_path} is for cpython-399-x86_64-linux-gnu" in line
    assert "\n" not in line


def test_modules_of_this_python_among_others_are_enough(tmp_path: Path):
    from importlib.machinery import EXTENSION_SUFFIXES

    folder = tmp_path / "sim" / "core"
    folder.mkdir(parents=True)
    (folder / "instance.cpython-399-x86_64-linux-gnu.so").touch()
    (folder / f"instance{EXTENSION_SUFFIXES[0]}").touch()
    assert unusable(tmp_path) is None
