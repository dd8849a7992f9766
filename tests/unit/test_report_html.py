import builtins
import json
import math
import re
import subprocess
from html.parser import HTMLParser
from shutil import which

import numpy as np
import pytest
from rich.table import Table as RichTable
from small_sweeps import sweep_into, write_config

from sim.report.html import page_sweep
from sim.report.html.charts import by_row
from sim.report.html.page import Table, blocks_of, style
from sim.report.html.page_capacity import capacity_study, sizing_study
from sim.report.html.page_runs import Lines, comparison_study, run_study
from sim.report.html.page_sweep import sweep_study
from sim.report.html.plotting import Axis
from sim.report.html.samples import SLICES, Requests, distribution, kv_share, waiting
from sim.report.html.write import report_html, write_report
from sim.report.tables import result_table
from sim.study.capacity.attainment import Target
from sim.study.capacity.output import sizes_content, write_capacity
from sim.study.capacity.search import capacities
from sim.study.capacity.sizing import Demand, size
from sim.study.config import load_config
from sim.study.files import write_json
from sim.study.output import write_comparison, write_result
from sim.study.run import compare, run
from sim.types import BadInput

MOST_BYTES = 6_000_000
SWEEP = """
policy: [continuous, static]
sweep: {workload.arrivals.rate: [2, 20, 200]}
"""
CLASSES = ["SLO attainment by class, at each point"]
CONFIG = """
cluster: {gpu: a100-40gb, count: 2, model: llama-2-13b}
policy:
  - {name: static, max_batch_size: 4, label: "<script>alert(1)<img src=x> & <b>"}
  - continuous
workload:
  source: mixed
  mixture: {alpaca: 0.7, sharegpt: 0.3}
  num_requests: 60
  arrivals: {process: poisson, rate: 4}
slo: {ttft_ms: 1000, tpot_ms: 100}
run: {replications: 3, steps: true}
"""
LABEL = "<script>alert(1)<img src=x> & <b>"


def load(folder, *overrides, text=CONFIG):
    path = folder / "config.yaml"
    path.write_text(text)
    return load_config(path, overrides)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    write_comparison(compare(load(folder)), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def page(compared):
    return report_html(compared)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    config = folder / "config.yaml"
    text = CONFIG[: CONFIG.index("policy:")] + CONFIG[CONFIG.index("workload:") :]
    config.write_text(text.replace("num_requests: 60", "num_requests: 40") + SWEEP)
    sweep_into(folder / "out", config)
    return folder / "out"


class Page(HTMLParser):
    """The elements, the texts outside scripts, and the figures of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.figures = [], "", []
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = (tag, dict(attributes).get("type"))

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == ("script", "application/json"):
            self.figures.append(json.loads(data))
        elif self.inside is None or self.inside[0] not in ("script", "style"):
            self.text += data


def charts(study):
    return {chart.title: chart for section in study.sections for chart in section.charts}


def titles(study):
    return [section.title for section in study.sections]


def own(text):
    """Return a page without plotly's own code."""
    return re.sub(r"<script>\n/\*\*\n\* plotly.*?</script>", "", text, flags=re.S)


# -- the file -----------------------------------------------------------------------------------


def test_the_file_is_small_and_the_same_every_time(compared, page):
    assert len(page.encode()) < MOST_BYTES
    assert report_html(compared) == page
    first = write_report(compared)
    assert first == compared / "report.html"
    assert first.read_text() == page  # the report in the folder changes nothing
    assert str(compared) not in page


def test_nothing_is_loaded_from_elsewhere(page):
    tags = Page(page).tags
    assert not [a for _, a in tags if {"src", "href"} & set(a)]
    assert "link" not in {tag for tag, _ in tags}
    policy = next(a["content"] for _, a in tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "http" not in own(page).replace("http-equiv", "")


def test_what_users_wrote_is_text_everywhere(page):
    found = Page(page)
    assert LABEL not in page
    assert "<script>alert" not in page
    assert [t for t, _ in found.tags].count("script") == len(found.figures) + 2
    assert not {"img", "b"} & {t for t, _ in found.tags}
    assert f"Comparison of {LABEL}, continuous" in found.text
    assert f"label: {LABEL}" in found.text  # of the config
    assert LABEL in [a.get("data-series") for _, a in found.tags]
    names = {trace["name"] for figure in found.figures for trace in figure["data"]}
    assert names == {"&lt;script&gt;alert(1)&lt;img src=x&gt;…", "continuous"}


def test_it_can_be_read_on_a_phone_and_in_the_dark(page):
    metas = [a for tag, a in Page(page).tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert "prefers-color-scheme: dark" in page
    assert page.count("<table>") == page.count('<div class="scroll" tabindex="0"><table>') > 0


def test_plotly_knows_every_attribute(page, swept):
    from plotly.graph_objects import Figure

    figures = Page(page).figures + Page(report_html(swept)).figures
    assert len(figures) > 12
    for figure in figures:
        Figure(figure)
        for axis in ("xaxis", "yaxis"):
            title = figure["layout"][axis]["title"]["text"]
            assert title or "tickvals" in figure["layout"][axis]
        hues = [trace["meta"]["hue"] for trace in figure["data"]]
        assert hues == sorted(set(hues))


@pytest.mark.parametrize("missing", ["jinja2", "plotly"])
def test_without_the_extra_one_line_says_what_to_install(compared, tmp_path, monkeypatch, missing):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == missing:
            raise ImportError(name=name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match=rf"needs {missing}.*pip install 'bucketsim\[report\]'"):
        write_report(compared, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_a_folder_without_a_result_says_what_it_must_hold(tmp_path):
    with pytest.raises(BadInput, match=r"summary.json \(run\).*sizing.json \(capacity --rate\)"):
        report_html(tmp_path)
    with pytest.raises(BadInput, match="is not there"):
        report_html(tmp_path / "none")
    with pytest.raises(BadInput, match="is a folder"):
        write_report(tmp_path, tmp_path)
    (tmp_path / "summary.json").write_text('{"a": ')
    with pytest.raises(BadInput, match=r"summary.json: cannot be read"):
        report_html(tmp_path)


# -- what it says -------------------------------------------------------------------------------


def test_a_comparison(compared):
    study = comparison_study(compared)
    assert titles(study) == [
        "Ranking",
        "Policies",
        "Summary",
        "Classes of requests",
        "Distributions of latencies",
        "Over time",
        "Config and versions",
    ]
    assert "seeds" in study.sections[0].others[0].lines[1]
    found = charts(study)
    summaries = json.loads((compared / "comparison.json").read_text())["policies"]
    trade = found["Speed for users against throughput"].figure["data"]
    speeds = [1000 / s["mean_tpot_ms"] for s in summaries.values()]
    assert [t["x"][0] for t in trade] == pytest.approx(speeds, rel=1e-4)
    by_source = found["SLO attainment by source"].figure["data"][1]
    of_class = summaries["continuous"]["classes"]["source"]["alpaca"]
    assert by_source["x"][0] == pytest.approx(100 * of_class["slo_attainment"], rel=1e-4)
    assert found["Time to first token (TTFT)"].marks == "dotted: SLO 1000 ms"
    assert {v.level for v in study.verdicts} == {s["saturation"] for s in summaries.values()}
    assert any(note.startswith("all policies: step times") for note in study.notes)
    assert "numpy" in study.sections[-1].others[0].lines[1]


def test_a_run_without_steps_and_without_requests(tmp_path):
    experiment = load(tmp_path, "policy=continuous", "run.steps=false", "run.replications=1")
    write_result(run(experiment), tmp_path / "out")
    study = run_study(tmp_path / "out")
    cards = {card.title: card for card in study.cards}
    assert cards["TTFT p99"].unit == "ms"
    assert study.about[2] == "1 replication"
    over_time = next(s for s in study.sections if s.title == "Over time")
    assert "run.steps=true" in over_time.others[0].lines[0]
    (tmp_path / "out" / "requests.parquet").unlink()
    (tmp_path / "out" / "config.yaml").unlink()
    study = run_study(tmp_path / "out")
    assert "no requests.parquet" in study.sections[-2].others[0].lines[0]
    assert "no config" in study.sections[-1].others[0].lines[0]


def test_a_sweep_over_the_rate_shows_the_knee(swept):
    (swept / "failed.json").write_text(
        '{"failed": [{"label": "static", "values": {"a.b": 2}, "error": "too <big>"}]}'
    )
    study = sweep_study(swept)
    assert titles(study) == ["Against the rate", *CLASSES, "Points", "Config and versions"]
    knee = charts(study)["TTFT, mean"].figure
    assert [trace["x"] for trace in knee["data"]] == [[2, 20, 200]] * 2
    assert knee["layout"]["xaxis"]["type"] == "log"
    symbols = charts(study)["TTFT, mean"].figure["data"][1]["marker"]["symbol"]
    words = sweep_words(swept, "static")
    assert [s.endswith("-open") for s in symbols] == [w != "stable" for w in words]
    met = charts(study)["alpaca"].figure["data"][0]
    assert met["y"] == pytest.approx(attainments(swept, "continuous", "alpaca"), rel=1e-4)
    assert "failed: static, b 2: too <big>" in study.notes
    assert study.verdicts[0].level == "overloaded"


def attainments(folder, label, source):
    from sim.study.sweeps.results import read_results

    rows = [r for r in read_results(folder).rows.values() if r["label"] == label]
    found = {}
    for row in rows:
        met = json.loads(row["classes"])["source"][source]["slo_attainment"]
        found.setdefault(row["workload.arrivals.rate"], []).append(100 * met)
    return [np.mean(found[rate]) for rate in sorted(found)]


def sweep_words(folder, label):
    from sim.study.sweeps.results import point_summaries, read_results

    return [p["saturation"] for p in point_summaries(read_results(folder)) if p["label"] == label]


def test_a_sweep_of_other_keys_is_drawn_against_the_first_number(tmp_path):
    sweep = "{run.seed: [1, 2], policy.max_num_seqs: [4, 8]}"
    sweep_into(tmp_path / "out", write_config(tmp_path, sweep))
    study = sweep_study(tmp_path / "out")
    assert study.sections[0].title == "Against run.seed"
    labels = [label for label, _ in study.sections[0].series]
    assert labels == ["continuous, max_num_seqs 4", "continuous, max_num_seqs 8"]


def test_a_sweep_of_many_combinations_has_a_mark_for_each_and_stays_small(tmp_path, monkeypatch):
    sweep = "{run.seed: [1, 2], policy.max_num_seqs: {low: 4, high: 90, integer: true}"
    sweep_into(tmp_path / "out", write_config(tmp_path, sweep + ", method: lhs, n: 15}"))
    against = sweep_study(tmp_path / "out").sections[0]
    assert [label for label, _ in against.series] == ["continuous"]
    (trace,) = against.charts[0].figure["data"]
    assert (trace["mode"], len(trace["x"])) == ("markers", 30)
    assert trace["text"][0].startswith("max_num_seqs ")
    size = sum(len(json.dumps(chart.figure)) for chart in against.charts)
    monkeypatch.setattr(page_sweep, "MOST_BYTES", size - 1)
    against = sweep_study(tmp_path / "out").sections[0]
    assert against.others[-1].lines == ("Drawn: 15 of 30 points, chosen by lot.",)
    assert len(against.charts[0].figure["data"][0]["x"]) == 15


def test_a_capacity_search_and_a_sizing(tmp_path):
    experiment = load(tmp_path, "policy=continuous", "run.replications=2")
    found = capacities(experiment, Target(0.8), 0.3)
    write_capacity(found, tmp_path)
    write_json(tmp_path / "sizing.json", sized(experiment))
    study = capacity_study(tmp_path)
    (policy,) = json.loads((tmp_path / "capacity.json").read_text())["policies"].values()
    shown = charts(study)["SLO attainment"]
    assert shown.marks == "dotted: target 80 %"
    assert shown.figure["data"][0]["x"] == pytest.approx(
        [p["rate_per_gpu_per_s"] for p in policy["curve"]], rel=1e-4
    )
    assert study.cards[0].unit == "requests/s on 2 GPUs"
    assert study.sections[-1].others[1].title == "continuous.yaml"
    assert sizing_study(tmp_path).cards[0].unit == "GPUs at least"
    text = report_html(tmp_path)  # both, one below the other
    assert text.count("<h1>") == 2


def sized(experiment):
    demand = Demand(2.0, Target(0.8), 8)
    return sizes_content(experiment, demand, size(experiment, demand), 2.0)


# -- its parts ----------------------------------------------------------------------------------


def requests(**columns):
    rows = len(columns["arrival_s"])
    filled = {
        "replication": np.zeros(rows, int),
        "status": np.array(["finished"] * rows),
        "emitted_tokens": np.full(rows, 3),
        "finish_s": np.array(columns["arrival_s"]) + 9.0,
        **{name: np.array(values) for name, values in columns.items()},
    }
    return Requests(filled, np.ones(rows, bool))


def test_who_was_never_served_is_slower_than_all():
    values, shares = distribution(np.array([3.0, math.nan, 1.0, 2.0]))
    assert shares[-1] <= 0.75
    assert (values[0], values[-1]) == (1.0, 3.0)
    assert shares[values == 1.0].max() <= 0.25


def test_latencies_are_those_of_the_summary(compared):
    from sim.report.html.samples import read_requests

    summary = json.loads((compared / "continuous" / "summary.json").read_text())
    found = read_requests(compared / "continuous" / "requests.parquet", [0.0] * 3)
    first = found.columns["replication"] == 0
    for key, name in (("ttft", "ttft"), ("e2e", "e2el")):
        mean = np.nanmean(found.latencies_ms()[key][first])
        assert mean == pytest.approx(summary["replications"][0][f"mean_{name}_ms"])
    late = read_requests(compared / "continuous" / "requests.parquet", [1e9, 0.0, 0.0])
    assert late.counted.sum() == (~first).sum()


def test_the_most_that_waited_in_a_slice():
    found = requests(
        arrival_s=[0.0, 1.0, 2.0, 3.0, 91.0],
        prefill_start_s=[0.0, 5.0, 5.0, math.nan, 91.0],
        first_token_s=[1.0, 6.0, 6.0, math.nan, 92.0],
        status=["finished", "finished", "finished", "aborted", "finished"],
    )
    times, most = waiting(found, 7.0)
    at = {s: most[int(s / 100 * SLICES)] for s in (0.5, 1.5, 2.5, 4, 6, 9.9, 11, 90)}
    assert at == {0.5: 0, 1.5: 1, 2.5: 2, 4: 3, 6: 1, 9.9: 1, 11: 0, 90: 0}
    assert len(times) == SLICES


def test_kv_memory_is_what_steps_hold(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "replication": [0, 0, 1],
        "instance": [0, 1, 0],
        "start_s": [0.0, 5.0, 0.0],
        "duration_s": [10.0, 5.0, 10.0],
        "n_steps": [1, 10, 1],
        "kind": ["prefill", "decode", "prefill"],
        "prefill_tokens": [40, 0, 90],
        "padded_tokens": [60, 0, 90],
        "decode_requests": [0, 2, 0],
        "kv_tokens": [10, 20, 0],
    }
    pq.write_table(pa.table(rows), tmp_path / "steps.parquet")
    times, share = kv_share(tmp_path / "steps.parquet", [100.0, 100.0])
    assert share[times < 4.9] == pytest.approx(0.25)  # (10 + 40) of 200
    assert share[-1] == pytest.approx((50 + 20 + 20) / 200)
    assert kv_share(tmp_path / "steps.parquet", [100.0]) is None


def test_a_terminal_table_keeps_its_weights_and_sections():
    figure = {"mean_ttft_ms": 12.0, "mean_ttft_ms_ci_low": 11.0, "mean_ttft_ms_ci_high": 13.0}
    about = {"label": "[b]x", "model": "m", "gpu": "g", "num_gpus": 1, "n_replications": 2}
    blocks = list(blocks_of(result_table({**about, **figure, "saturation": "stable"})))
    assert [type(b) for b in blocks] == [Lines, Table, Lines]
    table = blocks[1]
    assert table.head[2] == (("[b]x", False),)
    assert table.rows[0][2] == (("12 ", False), ("± 1", True))
    assert table.right == (False, False, True)
    assert table.rows[-1][2] == (("stable", False),)
    assert table.ends == {0}
    (bold,) = blocks_of(RichTable("[bold]x[/] [dim]y[/]"))
    assert bold.head == ((("x ", False), ("y", True)),)


def test_intervals_stay_where_figures_can_be():
    share = {"slo_attainment": 0.9, "slo_attainment_ci_low": -0.4, "slo_attainment_ci_high": 2.2}
    lines = [("a", style(0), {"chat": share})]
    chart = by_row("x", ["chat"], lines, "slo_attainment", Axis("%", 0, 103), 100)
    (trace,) = chart.figure["data"]
    assert trace["error_x"]["array"] == [pytest.approx(10)]
    assert 0 < trace["x"][0] - trace["error_x"]["arrayminus"][0] < 1


def test_many_series_differ():
    assert len({style(at) for at in range(210)}) == 210


COUNT = """<script>
const told = () => "requests: " + performance.getEntriesByType("resource").length;
setTimeout(() => { document.title = told(); }, 3000);
</script>"""


def browse(text, folder):
    """Return what chromium makes of a page, and what it complains about; it has no network."""
    path = folder / "page.html"
    path.write_text(text.replace("</body>", COUNT + "</body>"))
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}/profile"),
        *("--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom"),
    ]
    command = ["chromium", *flags, f"file://{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(not which("chromium"), reason="needs chromium")
def test_a_browser_draws_it_without_errors_or_requests(page, swept, tmp_path, record_property):
    drawn = 0
    for text in (page, report_html(swept)):
        dom, complaints = browse(text, tmp_path)
        assert complaints == []
        assert "<title>requests: 0</title>" in dom
        assert dom.count('class="plot js-plotly-plot"') == len(Page(text).figures) > 0
        assert dom.count('class="main-svg"') >= 2 * len(Page(text).figures)
        drawn += len(Page(text).figures)
    size = max(len(page.encode()), len(text.encode())) / 1e6
    told = f"{drawn} charts drawn, 0 console errors, 0 requests, at most {size:.1f} MB (chromium)"
    record_property("evidence", f"report, one HTML file: {told}")
    asking = '<img src="https://example.org/x.png"></main>'
    _, complaints = browse(page.replace("</main>", asking), tmp_path)
    assert len(complaints) == 1  # the page refuses it
