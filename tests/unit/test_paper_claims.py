"""Settings, probes and the claims table, on a paper with two small figures."""

import csv
import json
import math
import shutil

import pytest

from sim.cli import main
from sim.report.paper_claims import markdown, write_claims
from sim.report.paper_sensitivity import write_sensitivity
from sim.report.reproduction import BEGIN, END, read_expected, update_readme
from sim.study.paper.assumptions import PAPER_SET, read_assumptions, settings
from sim.study.paper.claims import Judged, explained, judge_claims, read_study, run_grids
from sim.study.paper.measures import Bench, claimed_value, needed
from sim.study.paper.numbers import Claim, read_paper
from sim.study.paper.probes import FOLDER, new_probe, probe_all
from sim.study.paper.recipes import read_paper_set, read_recipe
from sim.study.paper.verdict import JOINT, Claimed, Setting, judge
from sim.study.statistics.stats import Interval
from sim.types import BadInput

BASE = {
    "policies": ["bucketserve", "distserve"],
    "set": {
        "cluster": {"gpu": "a100-40gb", "count": 4, "model": "llama-2-13b"},
        "workload": {
            "source": "mixed",
            "num_requests": 30,
            "max_model_len": 4096,
            "arrivals": {"process": "poisson", "rate": 4},
        },
        "slo": {"ttft_ms": 500, "tpot_ms": 200},
    },
    "padding_free": {
        "set": {"engine.padding": "none"},
        "by_policy": {"bucketserve": {"policy.padded": False}},
    },
}
SERVER = {
    "title": "Server rate",
    "draw": "curve",
    "x": {"key": "workload.arrivals.rate", "label": "client rate [requests/s]"},
    "y": {"figure": "request_throughput", "label": "completed [requests/s]"},
    "sweep": {"workload.arrivals.rate": [4, 40]},
}
SLO = SERVER | {
    "title": "Attainment",
    "y": {"figure": "slo_attainment", "label": "met [%]", "factor": 100},
    "target": 80,
}
SOURCE = {"A": {"kind": "text", "what": "the paper"}}
AXES = {"x": {"label": "rate", "unit": "1/s"}, "y": {"label": "rate", "unit": "1/s"}}
OF_FIGURE = {"title": "t", "conditions": "c", "series": {}} | AXES
COMPLETED = "completed requests per second"
MET = "highest rate at which 80 % of the requests meet the SLO"
CLAIM = {"condition": "all", "source": "A", "kind": "ratio"}
PAPER = {
    "title": "A paper",
    "reference": "nowhere",
    "sources": SOURCE,
    "setup": {},
    "unknown": [],
    "conflicts": {},
    "figures": {"1": OF_FIGURE, "2": OF_FIGURE},
    "claims": [
        CLAIM
        | {"id": "faster", "text": "1.1x as many", "figure": "1", "value": 1.1, "metric": COMPLETED}
        | {"of": ["bucketserve", "distserve"]},
        CLAIM
        | {"id": "slo", "text": "2x the load", "figure": "2", "value": 2.0, "metric": MET}
        | {"of": ["bucketserve", "distserve"]},
        CLAIM
        | {"id": "both", "text": "more", "figure": "2", "value": 1.8, "metric": "ratio of gains"}
        | {"of": ["slo", "faster"], "kind": "gain_ratio"},
    ],
}
ASSUMPTIONS = {
    "samples": {"points": 4, "seeds": 2, "paper_seeds": 2, "seed": 0},
    "effort": {"requests": {"2": 20}, "width": 0.2},
    "assumptions": {
        "tokens": {
            "label": "tokens of a batch",
            "why": "unknown",
            "values": {
                "4096": {},
                "512": {"by_policy": {"distserve": {"policy.max_num_batched_tokens": 512}}},
            },
        },
        "engine": {
            "label": "engine",
            "why": "unknown",
            "values": {"padded": {}, "padding-free": {"padding_free": True}},
        },
    },
    "pairs": [{"of": ["tokens", "engine"], "claims": ["faster"], "why": "both pad"}],
}


def write(folder, base=None, **recipes):
    folder.mkdir(exist_ok=True)
    (folder / "_paper.yaml").write_text(json.dumps(BASE | (base or {})))
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))


def filled(folder):
    write(folder / "recipes", **{"1": SERVER, "2": SLO})
    (folder / "paper.yaml").write_text(json.dumps(PAPER))
    (folder / "assumptions.yaml").write_text(json.dumps(ASSUMPTIONS))
    return folder


@pytest.fixture
def folder(tmp_path):
    return filled(tmp_path)


def study_in(folder):
    paper = read_paper(folder / "paper.yaml")
    return read_study(paper, read_assumptions(folder / "assumptions.yaml"), folder / "recipes")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = filled(tmp_path_factory.mktemp("claims"))
    study = study_in(folder)
    return folder, study, judge_claims(study, folder / "out", 1)


# -- settings -----------------------------------------------------------------------------------


def test_settings_are_the_paper_set_singles_and_a_hypercube(folder):
    given = read_assumptions(folder / "assumptions.yaml")
    found = list(settings(given))
    assert [(s.assumption, s.value) for s in found[:3]] == [
        (PAPER_SET, PAPER_SET),
        ("tokens", "512"),
        ("engine", "padding-free"),
    ]
    joint = found[3:]
    assert [s.assumption for s in joint] == [JOINT] * 4
    for name in ("tokens", "engine"):
        assert sum(name in s.chosen for s in joint) == 2, "each value equally often"
    assert list(settings(given, 2)) == found[:5], "the first points of the same draw"
    assert list(settings(given)) == found, "drawn the same every time"


def test_a_setting_lies_below_the_recipe_and_above_the_paper_set(folder):
    study = study_in(folder)
    write(folder / "recipes", **{"1": SERVER | {"set": {"slo.tpot_ms": 55}}})
    recipes = {"1": read_recipe("1", folder / "recipes")}
    change = {
        "set": {"slo.scale": 3, "slo.tpot_ms": 99},
        "figures": {"1": {"workload.num_requests": 7, "workload.arrivals.rate": 11}},
        "padding_free": True,
    }
    given = ASSUMPTIONS["assumptions"]["engine"] | {"values": {"a": {}, "b": change}}
    (folder / "one.yaml").write_text(json.dumps({"assumptions": {"x": given}}))
    setting = list(settings(read_assumptions(folder / "one.yaml")))[1]
    bench = Bench(study.base, recipes, setting)
    data = bench.config("1", "bucketserve", bench.values("1", -1))
    assert data["slo"]["scale"] == 3
    assert data["slo"]["ttft_ms"] == 500
    assert data["slo"]["tpot_ms"] == 55, "what the recipe sets stays"
    assert data["workload"]["arrivals"]["rate"] == 11, "over what the figure varies, if it says so"
    assert data["workload"]["num_requests"] == 7, "over the recipe where it says so"
    assert data["engine"]["padding"] == "none"
    assert data["policy"]["padded"] is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"assumptions": {"x": {"label": "a", "why": "b", "values": {"p": {}}}}}, "at least one"),
        (
            {
                "assumptions": {
                    "x": {
                        "label": "a",
                        "why": "b",
                        "values": {"p": {"set": {"slo.scale": 1}}, "q": {}},
                    }
                }
            },
            "the first is {}",
        ),
        ({"pairs": [{"of": ["tokens", "engin"], "claims": ["faster"], "why": "w"}]}, "engine"),
        ({"samples": {"points": -1}}, "samples.points"),
        ({"assumed": {}}, "assumptions.assumed"),
    ],
)
def test_wrong_assumptions_are_one_line(folder, change, said, capsys):
    path = folder / "assumptions.yaml"
    path.write_text(json.dumps(ASSUMPTIONS | change))
    status = main(
        [
            *("paper", "claims", "--assumptions", str(path)),
            *("--paper", str(folder / "paper.yaml"), "--recipes", str(folder / "recipes")),
        ]
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert said in line
    assert str(path) in line


def test_a_claim_nobody_can_measure_is_one_line(folder):
    claims = [PAPER["claims"][0] | {"metric": "beauty"}]
    (folder / "paper.yaml").write_text(json.dumps(PAPER | {"claims": claims}))
    with pytest.raises(BadInput, match=r"claim faster: metric 'beauty' has no measure; valid: "):
        study_in(folder)


# -- probes -------------------------------------------------------------------------------------


def test_probes_run_once_and_damaged_files_again(folder):
    study = study_in(folder)
    paper_set = next(settings(study.assumptions))
    names = needed([study.paper.claim("faster")])
    probe = new_probe(paper_set, names, 2, None, study.base, study.recipes)
    out, told = folder / "out", []
    first = probe_all([probe], out, 1, lambda *at: told.append(at))
    (file,) = (out / FOLDER).iterdir()
    bytes_then = file.read_bytes()
    assert first[0].values[names[0]] != first[0].values[names[1]]
    assert first[0].requests == 2 * 2 * 30, "two policies, two replications"
    told.clear()
    assert probe_all([probe], out, 1, lambda *at: told.append(at)) == first
    assert told == [(1, 1, 0.0)], "nothing was run"
    file.write_bytes(bytes_then[:50])
    assert probe_all([probe], out, 1) == first
    assert file.read_bytes() == bytes_then


def test_a_search_of_a_setting_has_fewer_requests(folder):
    study = study_in(folder)
    setting = next(settings(study.assumptions))
    counts = []
    for effort in (None, study.assumptions.effort):
        bench = Bench(study.base, study.recipes, setting, effort)
        bench.crossing_per_s("2", "distserve")
        counts.append(bench.requests)
    assert counts[0] % 30 == 0
    assert counts[1] % 20 == 0
    assert counts[1] < counts[0]


def test_what_is_only_drawn_does_not_run_a_probe_again(folder):
    study = study_in(folder)
    paper_set = next(settings(study.assumptions))
    names = needed([study.paper.claim("faster")])
    name = new_probe(paper_set, names, 2, None, study.base, study.recipes).name
    told = {"title": "Another", "assumptions": ["told"]}
    base = {"assumptions": ["another model"], "seeds": 9}
    write(folder / "other", base, **{"1": SERVER | told, "2": SLO})
    recipes = {"1": read_recipe("1", folder / "other")}
    same = new_probe(paper_set, names, 2, None, read_paper_set(folder / "other"), recipes)
    assert same.name == name
    write(folder / "third", {"set": BASE["set"] | {"run": {"seed": 1}}}, **{"1": SERVER})
    other = new_probe(paper_set, names, 2, None, read_paper_set(folder / "third"), recipes)
    assert other.name != name


def test_a_setting_that_cannot_run_is_undefined_and_told(ran, tmp_path):
    folder, _, _ = ran
    broken = {"values": {"a": {}, "b": {"set": {"cluster.count": 1}}}}
    given = ASSUMPTIONS["assumptions"]["engine"] | broken
    changed = {"assumptions": {"gpus": given}, "pairs": [], "samples": {"points": 0, "seeds": 2}}
    (folder / "broken.yaml").write_text(json.dumps(ASSUMPTIONS | changed))
    paper = read_paper(folder / "paper.yaml")
    study = read_study(paper, read_assumptions(folder / "broken.yaml"), folder / "recipes")
    shutil.copytree(folder / "out", tmp_path / "out")  # what is not broken need not run again
    result = judge_claims(study, tmp_path / "out", 1)
    assert all("gpus = b" in name for name in result.failures)
    assert result.failures
    one = next(one for one in result.judged if one.claim.id == "faster")
    assert math.isnan(one.settings[0].mean)
    assert one.verdict.unclear == 1
    assert "could not be measured, under 1 settings" in markdown(result)


# -- the claims ---------------------------------------------------------------------------------


def test_a_ratio_is_formed_in_each_replication(ran):
    _, _study, result = ran
    faster, slo, both = result.judged
    values = [result.values[name] for name in needed([faster.claim])]
    ratios = [a / b for a, b in zip(*values, strict=True)]
    assert faster.ours.mean == pytest.approx(sum(ratios) / 2)
    assert (faster.ours.n, faster.check.n) == (2, 2)
    assert faster.check == faster.ours, "no search: the shorter runs are the same"
    assert both.ours.mean == pytest.approx(slo.ours.mean / faster.ours.mean, rel=0.2)
    assert result.points == 4
    assert len(faster.settings) == 6


def test_an_assumption_about_the_other_system_moves_the_ratio(ran):
    _, _, result = ran
    faster = result.judged[0]
    assert list(faster.alone()) == ["tokens", "engine"]
    assert faster.influence("engine") > 1.0
    assert faster.influence("nothing such") == 1.0


def test_influence_is_the_largest_factor_either_way():
    claim = Claim(**PAPER["claims"][0])
    here = Interval(2.0, 1.9, 2.1, 3)
    seen = tuple(Setting("a", str(m), m, m - 0.1, m + 0.1) for m in (1.0, 3.0, math.nan))
    verdict = judge(Claimed(1.1, 1.0, "above"), here, seen)
    assert Judged(claim, here, here, seen, verdict).influence("a") == 2.0


def test_explained_is_the_share_between_the_values():
    claim = Claim(**PAPER["claims"][0])
    here = Interval(1.0, 0.9, 1.1, 3)
    means = [1.0, 1.0, math.e, math.e, 1.0, math.e]
    seen = tuple(Setting(JOINT, str(i), m, m, m) for i, m in enumerate(means))
    one = Judged(claim, here, here, seen, judge(Claimed(1.1, 1.0, "above"), here, seen))
    chosen = [{"a": "x"} if m > 1 else {} for m in means]
    assert explained(one, chosen, "a") == pytest.approx(1.0)
    assert explained(one, [{"b": str(i % 2)} for i in range(6)], "b") < 0.5


def test_the_table_is_the_same_twice_and_says_what_was_run(ran, tmp_path):
    _, _, result = ran
    first = [path.read_bytes() for path in write_claims(result, tmp_path)]
    assert [path.read_bytes() for path in write_claims(result, tmp_path)] == first
    text = (tmp_path / "claims.md").read_text()
    assert "4 points of a Latin hypercube" in text
    assert "20 in 2" in text
    rows = list(csv.DictReader((tmp_path / "claims.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == ["faster", "slo", "both"]
    assert float(rows[0]["ours"]) == pytest.approx(result.judged[0].ours.mean, rel=1e-5)
    assert rows[0]["verdict"] == result.judged[0].verdict.name


def test_sensitivity_draws_and_tells(ran, tmp_path):
    folder, study, result = ran
    grids = run_grids(study, folder / "out", 1)
    assert grids[0].found["faster"]["4096", "padded"] == result.judged[0].check
    for path in write_sensitivity(result, grids, tmp_path):
        assert path.stat().st_size > 500
    text = (tmp_path / "sensitivity.md").read_text()
    assert "tokens of a batch against engine" in text
    assert "Both pad." in text


def test_gain_ratio_needs_its_parts(ran):
    _, study, result = ran
    found = {name: values[0] for name, values in result.values.items()}
    parts = [claimed_value(study.paper.claim(n), study.paper, found) for n in ("slo", "faster")]
    assert claimed_value(study.paper.claim("both"), study.paper, found) == parts[0] / parts[1]


# -- page and command ---------------------------------------------------------------------------


def test_the_readme_has_a_place_for_the_claims(ran, tmp_path):
    _, _, result = ran
    readme = tmp_path / "README.md"
    readme.write_text("# A\n")
    with pytest.raises(BadInput, match=r"it needs lines <!-- claims -->"):
        update_readme(result, readme)
    readme.write_text(f"# A\n{BEGIN}\nold\n{END}\nrest\n")
    update_readme(result, readme)
    text = readme.read_text()
    assert "old" not in text
    assert "1.1x as many" in text
    assert text.endswith("rest\n")


def test_expected_names_what_is_measured(ran, tmp_path):
    _, _, result = ran
    name = next(iter(result.values))
    path = tmp_path / "expected.yaml"
    path.write_text(json.dumps([{"quantity": name, "expected": 4.0, "within": 0.1}]))
    (one,) = read_expected(path, result.values)
    assert one.ours.mean == pytest.approx(sum(result.values[name]) / 2)
    path.write_text(json.dumps([{"quantity": "x", "expected": 4.0, "within": 0.1}]))
    with pytest.raises(BadInput, match="'x' is not measured; valid: "):
        read_expected(path, result.values)


def test_the_commands_from_files_to_page(ran, capsys, tmp_path):
    folder, _, _ = ran
    paths = ("--paper", str(folder / "paper.yaml"), "--recipes", str(folder / "recipes"))
    given = ("--assumptions", str(folder / "assumptions.yaml"), *paths, "--jobs", "1")
    assert main(["paper", "claims", "--out", str(folder / "out"), *given]) == 0
    first = capsys.readouterr()
    assert "1.1x as many" in first.out
    assert "requests simulated" not in first.err
    assert main(["paper", "claims", "--quick", "--out", str(folder / "out"), *given]) == 0
    (folder / "expected.yaml").write_text(json.dumps([]))
    results = folder / "all"
    results.mkdir()
    (folder / "out").rename(results / "claims")
    page = tmp_path / "PAGE.md"
    assert main(["paper", "report", "--out", str(results), "--page", str(page), *given]) == 0
    (results / "claims").rename(folder / "out")
    text = page.read_text()
    assert "Missing: `make ablation` has not run." in text
    assert "# A paper: what of it we could reproduce" in text
    assert "tokens of a batch" in text
