"""The core gives the same records interpreted and compiled, with either event loop."""

import pytest
from forms import FORMS, ROOT, SITE, run, why_skipped

REASON = why_skipped()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

QUICK, FULL = 20, 400
FIRST, *OTHERS = FORMS


def form(name: str, what: str, count: int) -> str:
    root, loop, policies = FORMS[name]
    return run(root, what, str(count), loop, policies)


def test_random_configurations():
    """All compiled against the reference; the other forms in the slow suite."""
    wanted = form(FIRST, "random", QUICK)
    assert len(wanted.splitlines()) >= 10 * QUICK
    assert form("all compiled, fast loop", "random", QUICK) == wanted


@pytest.mark.slow
def test_random_configurations_400(record_property):
    wanted = form(FIRST, "random", FULL)
    for name in OTHERS:
        assert form(name, "random", FULL) == wanted, name
        figure = f"{len(wanted.splitlines())} random configurations identical"
        record_property("evidence", f"{FIRST} = {name}: {figure}")


@pytest.mark.slow
def test_runs_at_90_percent(record_property):
    wanted = form(FIRST, "load", 4000)
    for name in OTHERS:
        assert form(name, "load", 4000) == wanted, name
        figure = f"{len(wanted.splitlines())} policies at 90 % load, 4,000 requests, identical"
        record_property("evidence", f"{FIRST} = {name}: {figure}")


def test_what_the_compiled_modules_were_made_from_is_what_is_here():
    """A build of older sources proves nothing."""
    stale = []
    for folder in ("sim/types", "sim/core", "sim/costs", "policies", "policies/parts"):
        for path in (ROOT / folder).glob("*.py"):
            built = SITE / path.relative_to(ROOT)
            whole = SITE / "policies/interpreted" / f"{folder[9:]}_{path.name}".lstrip("/_")
            if whole.exists() and folder.startswith("policies"):
                built = whole
            if not built.exists() or path.read_bytes() != built.read_bytes():
                stale.append(str(path.relative_to(ROOT)))
    assert not stale, "changed since `make compiled`"
