"""The ablation: what a YAML may say, contrasts, intervals, resumption and what is written."""

import csv
import json
import math
from copy import deepcopy

import pytest
from small_studies import ABLATION, base, write

from sim.cli import main
from sim.report import paper_ablation
from sim.report.paper_ablation import write_ablation
from sim.report.paper_ablation_picture import ticks
from sim.report.paper_ablation_words import TOLD, UNCHANGED, UNSURE, effect, sentences
from sim.report.paper_tables import mean_text, percent_text
from sim.study.paper import units
from sim.study.paper.ablation import is_open, paired_percent, plan_ablation, run_ablation
from sim.study.paper.recipes import read_paper_set
from sim.study.paper.studies import PADDED, PADDING_FREE
from sim.study.paper.units import FOLDER, Progress, offline_unit, read_unit
from sim.study.statistics.stats import Interval, student_t
from sim.types import BadInput


def planned(folder, change=None, **options):
    study = deepcopy(ABLATION)
    if change is not None:
        change(study)
    write(folder, ablation=study)
    return plan_ablation(base(folder), folder / "ablation.yaml", **options)


def run(ablation, folder, jobs=1):
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    progress = Progress(ablation.cost)
    return run_ablation(ablation, folder, jobs, progress), progress


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    result, progress = run(planned(folder, engines=[PADDED]), folder)
    return folder, result, progress


# -- what a YAML may say ------------------------------------------------------------------------


def variant(study, at):
    return study["variants"][at]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(sedes=3), "unknown key 'sedes'; did you mean 'seeds'?"),
        (lambda s: variant(s, 1).update(hass={}), "unknown key 'ablation.variants.1.hass'"),
        (lambda s: variant(s, 1).update(has={"bucket": "midpoint"}), "valid: buckets, batch"),
        (lambda s: variant(s, 2).update(has={"batch": "memmory"}), "did you mean 'memory'?"),
        (lambda s: variant(s, 1).update(setting="peper"), "did you mean 'paper'?"),
        (lambda s: variant(s, 1).update(policy="distserve"), "valid: bucketserve (in bare)"),
        (lambda s: variant(s, 1).update(label="nothing"), "twice in setting paper"),
        (lambda s: s["variants"].pop(0), "no variant with `has: {}`"),
        (lambda s: s.update(highlights=["boths"]), "highlights: no variant 'boths'; valid: nothi"),
        (lambda s: s.update(classes={"alpacca": "short"}), "no class 'alpacca'; valid: alpaca, lo"),
        (
            lambda s: (
                s["components"]["batch"]["memory"]["set"].update(distserve={})
                or s["bare"].update(distserve={})
                or variant(s, 1).update(policy="distserve")
            ),
            "policy distserve has no midpoint; those that have it: bucketserve",
        ),
        (
            lambda s: s["components"]["batch"]["memory"]["set"]["bucketserve"].update(
                {"policy.max_buckets": 2}
            ),
            "buckets and batch both set policy.max_buckets",
        ),
        (
            lambda s: s["components"]["batch"]["two"]["set"]["bucketserve"].update(
                {"policy.max_batch": 2}
            ),
            "variant 'two': unknown key 'policy.max_batch'",
        ),
    ],
)
def test_a_wrong_yaml_is_one_line_with_the_valid_choices(tmp_path, change, message):
    with pytest.raises(BadInput) as error:
        planned(tmp_path, change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "ablation.yaml" in str(error.value)


def test_a_variant_is_the_bare_policy_and_its_components(tmp_path):
    lines = {x.variant.label: x for x in planned(tmp_path, engines=[PADDED]).lines}
    configs = {label: json.loads(line.online) for label, line in lines.items()}
    nothing, both = (configs[label]["policy"][0] for label in ("nothing", "both"))
    assert (nothing["max_buckets"], nothing["max_batch_size"], nothing["theta"]) == (1, 4, 0.5)
    assert (both["max_buckets"], both["max_batch_size"]) == (8, None)
    assert {c["workload"]["num_requests"] for c in configs.values()} == {24}
    assert json.loads(lines["both"].offline)["workload"]["arrivals"]["process"] == "all-at-once"
    for config in configs.values():
        config["policy"] = None
    assert len({json.dumps(config, sort_keys=True) for config in configs.values()}) == 1


def test_on_a_padding_free_engine_the_policy_is_told(tmp_path):
    lines = planned(tmp_path).lines
    told = {(x.engine, json.loads(x.online)["policy"][0]["padded"]) for x in lines}
    assert told == {(PADDED, True), (PADDING_FREE, False)}
    engines = {(x.engine, json.loads(x.online)["engine"]["padding"]) for x in lines}
    assert engines == {(PADDED, "policy"), (PADDING_FREE, "none")}


def test_the_shipped_ablation_can_be_run():
    found = plan_ablation(read_paper_set())
    assert found.file.search.width <= 0.01
    assert found.seeds >= 5
    for line in found.lines:  # every component is met by itself, too
        if len(line.variant.has) > 1 and line.setting == "paper":
            for item in line.variant.has.items():
                assert any(dict([item]) == other.variant.has for other in found.lines), item


# -- numbers ------------------------------------------------------------------------------------


def test_differences_are_paired():
    found = paired_percent([11, 22, 33.3], [10, 20, 30])
    assert found == student_t([(11 / 10 - 1) * 100, (22 / 20 - 1) * 100, (33.3 / 30 - 1) * 100])
    assert found.mean == pytest.approx(31 / 3)
    assert found.high - found.mean == pytest.approx(4.302653 * (1 / math.sqrt(3)) / math.sqrt(3))
    assert math.isnan(paired_percent([1, 2], [0, 1]).mean)


def test_contrasts_are_the_variants_that_differ_in_one_component(done):
    _, result, _ = done
    found = {
        (c.line.variant.label, c.base.variant.label, c.component, c.instead_of)
        for c in result.contrasts
    }
    assert found == {
        ("buckets", "nothing", "buckets", ""),
        ("memory", "nothing", "batch", ""),
        ("two", "nothing", "batch", ""),
        ("two", "memory", "batch", "memory"),
        ("both", "memory", "buckets", ""),
        ("both", "buckets", "batch", ""),
    }
    alone = {c.line.variant.label for c in result.contrasts if c.alone}
    assert alone == {"buckets", "memory", "two"}


def test_measures_are_those_of_the_runs(done):
    folder, result, _ = done
    line = next(x for x in result.ablation.lines if x.variant.label == "two")
    bare = next(x for x in result.ablation.lines if not x.variant.has)
    per_s = [read_unit(folder, offline_unit(line.offline, i))["request_throughput"] for i in (0, 1)]
    before = [
        read_unit(folder, offline_unit(bare.offline, i))["request_throughput"] for i in (0, 1)
    ]
    found = result.of(line, "offline_requests")
    assert found.mean == student_t(per_s)
    assert found.percent == paired_percent(per_s, before)
    assert per_s != before
    rates = {key: result.of(line, f"rate_{key}").values for key in ("all", "short", "long")}
    lowest = tuple(min(of) for of in zip(*rates.values(), strict=True))
    assert result.of(line, "rate_every").values == lowest
    assert all(0.5 <= rate <= 16 for of in rates.values() for rate in of)


def test_an_open_end_is_no_number():
    assert is_open("rate_all", [3, 16], 16)
    assert not is_open("rate_all", [3, 15], 16)
    assert not is_open("offline_requests", [17], 16)


# -- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "least", "kind"),
    [
        ((5, 1, 9), 1, TOLD),
        ((-5, -9, -1), 1, TOLD),
        ((5, -1, 11), 1, UNSURE),
        ((0.3, -0.2, 0.8), 1, UNCHANGED),
        ((0.3, -0.2, 0.8), 0, UNSURE),
        ((0, 0, 0), 0, UNCHANGED),
        ((math.nan, math.nan, math.nan), 1, "undefined"),
    ],
)
def test_a_difference_is_told_only_if_it_can_be(interval, least, kind):
    assert effect(Interval(*interval, 3), least)[0] == kind


def test_numbers_in_text():
    assert percent_text(Interval(12.34, 8.04, 16.64, 5)) == "+12 % [+8.0, +17]"
    assert percent_text(Interval(-0.04, math.nan, math.nan, 1)) == "0.0 %"
    assert mean_text(Interval(4.218, 4.0, 4.44, 5)) == "4.22 [4, 4.44]"
    assert mean_text(Interval(math.nan, math.nan, math.nan, 5)) == "-"


def test_numbers_of_sentences_are_those_of_the_table(done):
    folder, _, _ = done
    result, progress = run(planned(folder, engines=[PADDED], seeds=1), folder)
    assert not progress.ran  # the first of the two seeds
    said = "\n".join(sentences(result))
    both = next(x for x in result.ablation.lines if x.variant.label == "both")
    gain = percent_text(result.of(both, "offline_requests").percent)
    assert f"“both” against nothing: offline {gain}" in said
    two = next(c for c in result.contrasts if c.instead_of)
    loss = percent_text(two.percent["offline_requests"])
    assert f"Pairs instead of memory batches, against “memory”: offline {loss}" in said
    gains = {
        c.line.variant.label: c.percent["offline_requests"].mean
        for c in result.contrasts
        if c.alone
    }
    best = max(gains, key=gains.get)
    what = {"two": "pairs", "memory": "memory batches", "buckets": "buckets"}[best]
    assert f"offline throughput gains most by {what} ({gains[best]:+.0f} %)" in said


def test_an_axis_has_ticks_whatever_its_range():
    assert ticks(3.3, 13.5) == [4, 6, 8, 12]
    assert ticks(3.6, 70) == [4, 8, 16, 32, 64]
    assert ticks(0.2, 0.3) == [0.25]


# -- files --------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_writes_the_same(done, tmp_path, monkeypatch):
    folder, result, first = done
    drawn = write_ablation(result, folder)
    assert [p.name for p in drawn] == [
        f"ablation.{e}" for e in ("csv", "parquet", "md", "pdf", "png")
    ]
    monkeypatch.setattr(paper_ablation, "draw_ablation", lambda *_: [])
    again, second = run(planned(folder, engines=[PADDED]), folder)
    assert first.ran == 5 * 2 * 4
    assert (second.ran, second.found) == (0, first.ran)
    elsewhere, third = run(planned(folder, engines=[PADDED]), tmp_path)
    assert third.ran == first.ran
    for result in (again, elsewhere):
        for path in write_ablation(result, tmp_path):
            assert path.read_bytes() == (folder / path.name).read_bytes()


def test_the_table_has_every_variant_and_every_contrast(done, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(paper_ablation, "draw_ablation", lambda *_: [])
    write_ablation(done[1], tmp_path)
    rows = pq.read_table(tmp_path / "ablation.parquet").to_pylist()
    assert len(rows) == (5 + 6) * 8
    with (tmp_path / "ablation.csv").open() as file:
        assert [row["variant"] for row in csv.DictReader(file)] == [row["variant"] for row in rows]
    assert {row["n"] for row in rows} == {2}


def test_what_is_missing_or_damaged_is_run_again(done):
    folder, before, first = done
    files = sorted((folder / FOLDER).glob("*.json"))
    files[0].unlink()
    files[1].write_text(files[1].read_text()[:-20])
    data = json.loads(files[2].read_text())
    data["found"]["runs"] += 1
    files[2].write_text(json.dumps(data))
    after, progress = run(planned(folder, engines=[PADDED]), folder)
    assert (progress.ran, progress.found) == (3, first.ran - 3)
    assert [m.values for m in after.measured] == [m.values for m in before.measured]


def test_another_seed_or_config_is_another_unit(tmp_path):
    line = planned(tmp_path).lines[0]
    names = {offline_unit(line.offline, 0).name, offline_unit(line.offline, 1).name}
    names.add(offline_unit(line.online, 0).name)
    assert len(names) == 3


def test_the_command_goes_on_after_an_interrupt(tmp_path, monkeypatch, capsys):
    write(tmp_path, ablation=ABLATION)
    monkeypatch.setattr(paper_ablation, "draw_ablation", lambda *_: [])
    whole, count = units.run_unit, 0

    def stops(unit, folder):
        nonlocal count
        count += 1
        if count > 7:
            raise KeyboardInterrupt
        return whole(unit, folder)

    options = ["paper", "ablation", "--seeds", "1", "--jobs", "1", "--recipes", str(tmp_path)]
    options += ["--study", str(tmp_path / "ablation.yaml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(units, "run_unit", stops)
    assert main(options) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(units, "run_unit", whole)
    assert main(options) == 0
    assert "33 results" in (said := capsys.readouterr().err), said
    assert "7 found finished" in said
    assert (tmp_path / "out" / "ablation.md").exists()


def test_a_run_that_fails_is_told_and_not_kept(tmp_path, monkeypatch, capsys):
    def fails(experiment, unit):
        raise ZeroDivisionError("no luck")

    write(tmp_path, ablation=ABLATION)
    monkeypatch.setattr(paper_ablation, "draw_ablation", lambda *_: [])
    monkeypatch.setitem(units.WORK, "offline", fails)
    options = ["paper", "ablation", "--seeds", "1", "--jobs", "1", "--recipes", str(tmp_path)]
    options += ["--study", str(tmp_path / "ablation.yaml"), "--out", str(tmp_path / "out")]
    assert main(options) == 1
    assert "ZeroDivisionError: no luck" in capsys.readouterr().err
    kinds = {json.loads(p.read_text())["kind"] for p in (tmp_path / "out/units").iterdir()}
    assert kinds == {"search"}
