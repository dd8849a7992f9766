"""Recipes, their tasks, their tables and their pictures, on figures of a few requests."""

import json
import math

import pytest
import yaml

from sim.cli import main
from sim.study.paper.figure_data import (
    Row,
    falls_below,
    figure_rows,
    mean_row,
    read_rows,
    write_rows,
)
from sim.study.paper.figure_models import wasted
from sim.study.paper.recipes import (
    FOLDER,
    config_of,
    fingerprint,
    merged,
    plan_figures,
    recipe_names,
)
from sim.study.sweeps.backends import Local
from sim.study.sweeps.sweep import run_sweep
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
    "by_policy": {"distserve": {"policy.max_prefill_seqs": 16, "engine.min_step_ms": 30}},
    "padding_free": {
        "set": {"engine.padding": "none"},
        "by_policy": {"bucketserve": {"policy.padded": False}},
    },
    "seeds": 2,
    "assumptions": ["a model"],
    "assumptions_of": {"uellm": "not drawn"},
}
CURVE = {
    "title": "A curve",
    "draw": "curve",
    "x": {"key": "workload.arrivals.rate", "label": "client rate [requests/s]"},
    "y": {"figure": "slo_attainment", "label": "met [%]", "factor": 100},
    "classes": {"alpaca": "short"},
    "target": 80,
    "sweep": {"workload.arrivals.rate": [2, 40]},
}
OVERHEAD = {
    "title": "Bucketing",
    "draw": "overhead",
    "policies": ["bucketserve"],
    "x": {"key": "policy.max_buckets", "label": "buckets"},
    "y": {"label": "charged [s]"},
    "by_policy": {"bucketserve": {"policy.overhead_us_per_op": 10}},
    "sweep": {"policy.max_buckets": [1, 4]},
}


def write(folder, base=None, **recipes):
    folder.mkdir(exist_ok=True)
    (folder / "_paper.yaml").write_text(yaml.safe_dump(BASE | (base or {})))
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def recipes(tmp_path):
    return write(tmp_path / "recipes", curve=CURVE, overhead=OVERHEAD)


def configs(figure):
    return {
        (task["policy"][0]["name"]): task
        for task in (json.loads(task.config) for task in figure.tasks.values())
    }


# -- recipes ------------------------------------------------------------------------------------


def test_a_figure_and_its_twin_differ_in_the_engine_only(recipes):
    figure, twin = plan_figures(["curve"], recipes)
    assert (figure.name, twin.name, twin.paper_name) == ("curve", "curve-twin", "curve")
    for name, config in configs(figure).items():
        other = configs(twin)[name]
        assert (config["engine"].pop("padding"), other["engine"].pop("padding")) == (
            "policy",
            "none",
        )
        padded = config["policy"][0].pop("padded"), other["policy"][0].pop("padded")
        assert padded == (True, name != "bucketserve")
        assert config == other


def test_a_key_for_one_policy_wins_and_stays_with_it(recipes):
    write(recipes, curve=CURVE | {"set": {"engine.min_step_ms": 5}})
    found = configs(plan_figures(["curve"], recipes, twins=False)[0])
    assert found["distserve"]["engine"]["min_step_ms"] == 30
    assert found["distserve"]["policy"][0]["max_prefill_seqs"] == 16
    assert found["bucketserve"]["engine"]["min_step_ms"] == 5


def test_seeds_are_the_paper_sets_the_recipes_or_those_asked_for(recipes):
    assert len(plan_figures(["curve"], recipes, twins=False)[0].tasks) == 2 * 2 * 2
    write(recipes, curve=CURVE | {"seeds": 3})
    assert len(plan_figures(["curve"], recipes, twins=False)[0].tasks) == 2 * 2 * 3
    assert len(plan_figures(["curve"], recipes, seeds=1, twins=False)[0].tasks) == 2 * 2


def test_assumptions_are_those_of_the_policies_drawn(recipes):
    (figure,) = plan_figures(["curve"], recipes, twins=False)
    assert figure.assumptions == ("a model",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"titel": "x"}, "unknown key 'titel'; did you mean 'title'?"),
        ({"draw": "pie"}, "'curve', 'offline', 'bars'"),
        ({"set": {"engin.padding": "none"}}, "did you mean 'engine'? valid: cluster, policy"),
        ({"set": {"engine.paddin": "none"}}, "unknown key 'engine.paddin'"),
        ({"by_policy": {"distsrve": {}}}, "did you mean 'distserve'?"),
        ({"x": {"key": "run.seed", "label": "", "colour": 1}}, "unknown key 'recipe.x.colour'"),
        ({"sweep": {}}, "expected keys and what they take"),
        ({"policies": ["bucketsrve"]}, "bucketserve"),
    ],
)
def test_bad_recipes_are_one_line_with_the_file(recipes, change, says):
    write(recipes, curve=CURVE | change)
    with pytest.raises(BadInput) as error:
        plan_figures(["curve"], recipes)
    assert str(error.value).startswith(str(recipes / "curve.yaml"))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_name_is_answered_with_the_valid_ones(recipes, capsys):
    args = ["figures", "5z", "--recipes", str(recipes), "--out", str(recipes / "out")]
    assert main(args) == 2
    assert "no figure '5z'; valid: curve, overhead, each also with -twin" in capsys.readouterr().err


def test_a_figure_without_a_twin_has_none(recipes):
    write(recipes, curve=CURVE | {"twin": False})
    assert [f.name for f in plan_figures(["curve"], recipes)] == ["curve"]
    with pytest.raises(BadInput, match="'curve' has no twin"):
        plan_figures(["curve-twin"], recipes)


def test_every_figure_of_the_issue_has_a_recipe_that_is_valid():
    names = ["2a", "2b", "3b", "5a", "5b", "5c", "5d", "5e", "5f", "6a", "6b"]
    assert recipe_names(FOLDER) == names
    figures = plan_figures([], FOLDER, seeds=1)
    assert len(figures) == 22
    found = configs(next(f for f in figures if f.name == "5d"))
    assert found["uellm"]["engine"]["min_step_ms"] == 38.6
    assert found["uellm"]["cluster"]["pools"][0]["tp"] == 4
    assert found["distserve"]["policy"][0]["max_num_batched_tokens"] == 4096
    assert found["bucketserve"]["policy"][0]["nmax_length"] == "lmax"
    assert [p["tp"] for p in found["bucketserve"]["cluster"]["pools"]] == [2, 2]


def test_a_recipe_sets_whole_values():
    from sim.study.paper.recipes import PaperSet, Recipe

    base = PaperSet(policies=("static",), set={"workload.arrivals": {"process": "p", "rate": 1}})
    recipe = Recipe(title="", draw="bars", y={"label": ""}, set={"workload.arrivals": {"a": 1}})
    assert config_of(base, recipe, "static", False)["workload"] == {"arrivals": {"a": 1}}


# -- from shards to pictures --------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Draw both figures through the command line; return the folder and its recipes."""
    root = tmp_path_factory.mktemp("figures")
    folder = write(root / "recipes", curve=CURVE, overhead=OVERHEAD)
    assert draw(folder, root / "out") == 0
    return root / "out", folder


def draw(recipes, out, *more):
    nowhere = str(recipes / "paper.yaml")
    args = ["--recipes", str(recipes), "--out", str(out), "--paper", nowhere, "--jobs", "1"]
    return main(["figures", *more, *args])


def test_each_figure_is_a_table_a_pdf_and_a_png(drawn):
    out, _ = drawn
    for name in ("curve", "curve-twin", "overhead", "overhead-twin"):
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{name}.png").stat().st_size > 10_000
        rows, _ = read_rows(out / f"{name}.parquet")
        assert rows


def test_the_table_holds_means_intervals_and_ratios(drawn):
    out, recipes = drawn
    rows, _ = read_rows(out / "curve.parquet")
    panels = {(row.panel, row.series): row for row in rows}
    assert set(panels) == {
        *((p, s) for p in ("all", "alpaca", "crossing") for s in ("bucketserve", "distserve")),
        ("ratio", "distserve"),
    }
    row = next(r for r in rows if (r.panel, r.series, r.x) == ("all", "distserve", 2.0))
    assert row.n == 2
    assert 0 <= row.low <= row.y <= row.high or row.low < 0
    (figure, _) = plan_figures(["overhead"], recipes)
    table = figure_rows(figure, out)
    charged = {r.x: r.y for r in table if r.panel == "all"}
    counted = {r.x: r.y for r in table if r.series == "operations"}
    assert charged == pytest.approx({x: n * 10e-6 for x, n in counted.items()})
    assert counted[1.0] >= 30  # an assignment for each request


def test_a_second_run_computes_nothing_and_a_change_only_its_figure(drawn, capsys):
    out, recipes = drawn
    before = {path.name: path.read_bytes() for path in out.glob("*.p*")}
    assert draw(recipes, out) == 0
    said = capsys.readouterr().err
    assert "all 24 tasks found finished: nothing simulated" in said
    assert "0 of 4 figures drawn" in said
    write(recipes, overhead=OVERHEAD | {"sweep": {"policy.max_buckets": [1, 2, 4]}})
    assert draw(recipes, out) == 0
    said = capsys.readouterr().err
    assert "4 tasks run" in said
    assert "2 of 4 figures drawn" in said
    write(recipes, overhead=OVERHEAD)
    assert draw(recipes, out) == 0
    tables = {name: data for name, data in before.items() if name.endswith("parquet")}
    assert tables == {name: (out / name).read_bytes() for name in tables}


def test_a_missing_shard_is_named(drawn, tmp_path):
    _, recipes = drawn
    (figure, _) = plan_figures(["curve"], recipes)
    with pytest.raises(BadInput, match=r"figure curve: shard .*parquet is missing; `bucketsim fi"):
        figure_rows(figure, tmp_path)


def test_an_interrupted_start_goes_on_with_what_is_there(recipes, tmp_path):
    (figure, _) = plan_figures(["overhead"], recipes)
    whole = merged([figure])
    stopped = iter(range(2))

    def stop(done, total):
        if next(stopped, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(whole, tmp_path / "o", Local(1), resume=True, progress=stop)
    done = run_sweep(whole, tmp_path / "o", Local(1), resume=True)
    assert (done.found, done.ran) == (2, 2)


def test_what_decides_a_picture_is_in_its_fingerprint(recipes):
    (figure, twin) = plan_figures(["curve"], recipes)
    stamps = {fingerprint(f, p) for f in (figure, twin) for p in (None, "paper")}
    write(recipes, curve=CURVE | {"title": "Another"})
    stamps.add(fingerprint(plan_figures(["curve"], recipes)[0], None))
    write(recipes, base={"assumptions": ["another"]})
    stamps.add(fingerprint(plan_figures(["curve"], recipes)[0], None))
    assert len(stamps) == 6


# -- arithmetic ---------------------------------------------------------------------------------


def test_where_a_curve_falls_below():
    assert falls_below([(1, 100), (4, 60)], 80) == pytest.approx(2)  # half-way, in the logarithm
    assert falls_below([(1, 80), (2, 79), (3, 99)], 80) == pytest.approx(1)
    assert math.isnan(falls_below([(1, 70), (2, 60)], 80))
    assert math.isnan(falls_below([(1, 90), (2, 80)], 80))


def test_padding_of_batches():
    import numpy as np

    lengths = np.array([1, 3, 5, 5, 7])
    assert wasted(lengths, 1) == 0
    assert wasted(lengths, 2) == pytest.approx(1 - 14 / 16)  # the last one fills no batch


def test_a_damaged_table_is_made_again(tmp_path):
    path = tmp_path / "x.parquet"
    rows = [mean_row("all", "a", 1, [1.0, 3.0]), Row("all", "b", 2.0, "c", 1.0, 0.5, 1.5, 3)]
    write_rows(path, rows, "stamp")
    assert read_rows(path) == (rows, "stamp")
    path.write_bytes(path.read_bytes()[:50])
    assert read_rows(path) is None
    assert read_rows(tmp_path / "none.parquet") is None
