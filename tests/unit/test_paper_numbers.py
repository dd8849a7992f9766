"""The paper's numbers: what the file holds, and how a wrong file is refused."""

import json
from pathlib import Path

import pytest

from sim.study.paper.numbers import PAPER, read_paper
from sim.types import BadInput

ROOT = Path(__file__).resolve().parents[2]
SPEC = {  # bucketserve.md sections 7-9: id -> value
    "offline-uellm": 3.58,
    "offline-distserve": 1.31,
    "slo-mixed": 1.93,
    "slo-alpaca": 1.37,
    "server-uellm-alpaca": 1.975,
    "server-uellm-mixed": 3.47,
    "server-distserve-mixed": 1.4,
    "server-alpaca": 7.9,
    "server-mixed": 7.3,
    "time-decode": 0.9,
}


@pytest.fixture(scope="module")
def paper():
    return read_paper(ROOT / PAPER)


def test_the_claims_are_the_specifications(paper):
    assert {name: paper.claim(name).value for name in SPEC} == SPEC
    share = paper.claim("bucketing-share").claimed
    assert (share.value, share.bound, share.side) == (None, 0.01, "below")
    assert len(paper.claims) == 18


def test_derived_values_follow_from_what_they_are_derived_from(paper):
    def points(figure):
        series = paper.figure(figure).series
        return {(name, x): y for name, of in series.items() for x, y, _ in of}

    def value(name):
        return paper.claim(name).value

    use = points("5b")
    bs, ds, uellm = "bucketserve", "distserve", "uellm"
    for phase, figure in [("average", "distserve"), ("prefill", "prefill-distserve")]:
        ratio = use[bs, phase] / use[ds, phase]
        assert value(f"utilisation-{figure}") == pytest.approx(ratio, abs=5e-4)
    assert value("utilisation-decode-distserve") == pytest.approx(
        use[bs, "decode"] / use[ds, "decode"], abs=5e-4
    )
    assert value("utilisation-uellm") == pytest.approx(
        use[ds, "average"] / use[uellm, "average"], abs=5e-4
    )
    long = points("3b")
    assert value("utilisation-long-phases") == pytest.approx(
        long["decode", "long"] / long["prefill", "long"], abs=5e-4
    )
    assert value("slo-mixed-over-alpaca") == pytest.approx(
        value("slo-mixed") / value("slo-alpaca"), abs=5e-4
    )
    alpaca, mixed = points("5e"), points("5f")
    assert alpaca[uellm, 8] == pytest.approx(7.9 / value("server-uellm-alpaca"), abs=0.05)
    assert mixed[uellm, 8] == pytest.approx(7.3 / value("server-uellm-mixed"), abs=0.05)
    assert mixed[ds, 8] == pytest.approx(7.3 / value("server-distserve-mixed"), abs=0.05)


def test_figures_to_be_drawn_are_there(paper):
    names = ["2a", "2b", "3b", "5a", "5b", "5c", "5d", "5e", "5f", "6a", "6b"]
    assert list(paper.figures) == names
    assert paper.figure("5f").series["bucketserve"] == ((8, 7.3, ("C",)),)
    bins = [y for _, y, _ in paper.figure("2b").series["longbench"]]
    assert sum(bins) == 949  # and one of 1 that has no place; about 950 requests
    assert paper.figure("2b").reading_error.x == 4150  # half a bin


def test_conflicts_are_kept(paper):
    readings = paper.conflicts["utilisation"].readings
    assert [reading.source for reading in readings] == [("A",), ("C",)]
    cited = {claim.conflict for claim in paper.claims} - {None}
    assert cited <= set(paper.conflicts)
    assert {"utilisation", "rate_at_80", "bucketing_time", "load_of_1_975"} <= cited


def test_a_ratio_below_one_claims_below_one(paper):
    claimed = paper.claim("utilisation-long-phases").claimed
    assert (claimed.bound, claimed.side) == (1.0, "below")
    claimed = paper.claim("slo-mixed").claimed
    assert (claimed.bound, claimed.side) == (1.0, "above")
    claimed = paper.claim("server-mixed").claimed
    assert (claimed.bound, claimed.side) == (None, None)


@pytest.mark.parametrize(("ask", "of"), [("figure", "9z"), ("claim", "faster")])
def test_wrong_names_are_refused_with_the_valid_ones(paper, ask, of):
    with pytest.raises(BadInput, match=f"{ask} '{of}' is not .* valid: (2a, 2b|offline-uellm, )"):
        getattr(paper, ask)(of)


def small():
    """Return a valid file, as short as they get."""
    axis = {"label": "rate", "unit": "req/s"}
    claim = {
        "id": "faster",
        "text": "twice as fast",
        "figure": "1",
        "kind": "ratio",
        "value": 2.0,
        "of": ["a", "b"],
        "metric": "rate",
        "condition": "load 8",
        "source": "T",
    }
    figure = {
        "title": "Rate",
        "x": axis,
        "y": axis,
        "conditions": "",
        "series": {"a": [[8, 2, "T"]]},
    }
    return {
        "title": "A paper",
        "reference": "somewhere",
        "sources": {"T": {"kind": "text", "what": "it"}, "P": {"kind": "plot", "what": "plot"}},
        "setup": {"gpus": {"value": 4, "unit": "GPUs", "source": ["T"]}},
        "unknown": [],
        "conflicts": {},
        "figures": {"1": figure},
        "claims": [claim],
    }


def changed(path, value):
    """Return the small file with one key changed, or removed by None."""
    data = small()
    *above, last = path
    place = data
    for key in above:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


def read(tmp_path, data):
    path = tmp_path / "paper.yaml"
    path.write_text(json.dumps(data))
    return read_paper(path)


def test_the_small_file_is_read(tmp_path):
    assert read(tmp_path, small()).claim("faster").claimed.value == 2


A_CLAIM, A_FIGURE = ("claims", 0), ("figures", "1")
A_POINT = (*A_FIGURE, "series", "a")
CONFLICT = {"about": "x", "readings": [{"source": "T", "says": "1"}], "kept": "both"}
WRONG = {
    "no source of a claim": ((*A_CLAIM, "source"), None, "claims.0.source is missing"),
    "an empty source": ((*A_CLAIM, "source"), [], "claims.0.source: .* got"),
    "an unknown source": ((*A_CLAIM, "source"), "Z", "faster.source: unknown 'Z'; valid: T, P"),
    "no source of a number": (("setup", "gpus", "source"), None, "setup.gpus.source is missing"),
    "a wrong source there": (("setup", "gpus", "source"), "Z", "setup.gpus.source: unknown 'Z'"),
    "a point without source": (A_POINT, [[8, 2]], r"series.a.0: a point is \[x, y, source\]"),
    "a point of whom": (A_POINT, [[8, 2, "Z"]], "figures.1.source: unknown 'Z'"),
    "a point that is none": (A_POINT, [[8, ".nan", "T"]], "series.a.0.1"),
    "an infinite value": ((*A_CLAIM, "value"), float("inf"), "value: .* finite number"),
    "a plot of what error": (A_POINT, [[8, 2, "P"]], "figures.1.reading_error is missing"),
    "a claim of what error": ((*A_CLAIM, "source"), "P", "faster.reading_error is missing"),
    "an unknown key": ((*A_CLAIM, "sauce"), "T", "unknown key 'paper.claims.0.sauce'.*'source'"),
    "an unknown section": (("claim",), [], "unknown key 'paper.claim'.*'claims'"),
    "a claim of one": ((*A_CLAIM, "of"), ["a"], "of: a ratio is of 2, got 1"),
    "a claim of nothing": ((*A_CLAIM, "value"), None, "has a value, a bound or both"),
    "a figure that is not": ((*A_CLAIM, "figure"), "7", "faster.figure: unknown '7'; valid: 1"),
    "a gain of what": ((*A_CLAIM, "kind"), "gain_ratio", "faster.of: unknown 'a'; valid: faster"),
    "a conflict that is not": ((*A_CLAIM, "conflict"), "c", "faster.conflict: unknown 'c'"),
    "the same id twice": (("claims",), small()["claims"] * 2, "id 'faster' stands 2 times"),
    "a conflict of one": (("conflicts",), {"c": CONFLICT}, "conflicts.c.readings: .* at least 2"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_files_are_refused_in_one_line(tmp_path, wrong):
    path, value, message = WRONG[wrong]
    with pytest.raises(BadInput, match=message) as error:
        read(tmp_path, changed(path, value))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "paper.yaml"))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "paper.yaml"
    with pytest.raises(BadInput, match="cannot be read"):
        read_paper(path)
    path.write_text("- 1\n")
    with pytest.raises(BadInput, match=r"are a mapping of keys, got \[1\]"):
        read_paper(path)
