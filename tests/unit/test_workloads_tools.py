"""Describing, drawing and writing traces."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from sim.types import Trace
from workloads.base import BadInput
from workloads.describe import describe, plot_histogram
from workloads.exports import form_names, write_as
from workloads.read import read_trace
from workloads.workload import WorkloadConfig, generate
from workloads.write import write_plain


def trace_of(input_len, output_len, **columns):
    return Trace(np.array(input_len, np.int64), np.array(output_len, np.int64), **columns)


def test_describe_by_hand():
    trace = trace_of(
        [1, 2, 3, 4, 100],
        [9, 8, 7, 6, 5],
        arrival_s=np.array([1.0, 2, 3, 4, 9]),
        source=np.array([0, 1, 0, 0, 0]),
        sources=("a", "b"),
        notes={"read": 5},
    )
    found = describe(trace)
    assert (found["n"], found["span_s"], found["rate_per_s"]) == (5, 8.0, 0.5)
    assert found["input_len"]["mean"] == 22
    assert found["input_len"]["p50"] == 3
    assert found["input_len"]["p25"] == 2
    assert (found["output_len"]["min"], found["output_len"]["max"]) == (5, 9)
    assert list(found["input_len"]) == [
        "mean",
        "min",
        *(f"p{p}" for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)),
        "max",
    ]
    assert found["rank_correlation"] == pytest.approx(-1)
    assert found["sources"] == {"a": 4, "b": 1}
    assert found["notes"] == {"read": 5}


def test_describe_what_is_not_defined():
    found = describe(trace_of([5, 5], [1, 2]))
    assert found["span_s"] is found["rate_per_s"] is found["rank_correlation"] is None
    assert describe(trace_of([5], [1], arrival_s=np.array([2.0])))["rate_per_s"] is None


@pytest.mark.parametrize(
    ("lengths", "suffix"),
    [
        *[(lengths, "png") for lengths in ([7] * 5, [1, 2], list(range(300, 500)))],
        *[([1, 10**6], suffix) for suffix in ("png", "pdf", "svg")],
    ],
)
def test_plot(tmp_path, lengths, suffix):
    path = tmp_path / f"h.{suffix}"
    plot_histogram(trace_of(lengths, lengths[::-1], sources=("a$b",)), path)
    assert path.stat().st_size > 2_000
    assert list(tmp_path.iterdir()) == [path]


def test_written_times_come_back_exactly_and_bytes_repeat(tmp_path):
    fields = {
        "source": "mixed",
        "num_requests": 2_000,
        "arrivals": {"process": "poisson", "rate": 7},
    }
    trace = generate(WorkloadConfig(**fields), 0)
    for name in ("a.csv", "a.csv.gz", "a.parquet"):
        write_plain(trace, tmp_path / name)
        once = (tmp_path / name).read_bytes()
        write_plain(trace, tmp_path / name)
        assert (tmp_path / name).read_bytes() == once
        again = read_trace(tmp_path / name)
        np.testing.assert_array_equal(again.arrival_s, trace.arrival_s)
        np.testing.assert_array_equal(again.output_len, trace.output_len)
        assert [again.sources[i] for i in again.source] == [trace.sources[i] for i in trace.source]
    head = gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).splitlines()[0]
    assert head == b"arrived_at_s,prompt_tokens,output_tokens,source"


def test_lengths_only_come_back_without_times(tmp_path):
    write_plain(generate(WorkloadConfig(source="alpaca", num_requests=3), 0), tmp_path / "a.csv")
    assert read_trace(tmp_path / "a.csv").arrival_s is None
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith(",")


@pytest.mark.parametrize("write", [write_plain, plot_histogram])
def test_suffix_and_place(tmp_path, write):
    trace = trace_of([1, 2], [3, 4])
    with pytest.raises(BadInput, match=r"a\.txt: cannot .*; valid suffixes: \."):
        write(trace, tmp_path / "a.txt")
    place = tmp_path / "no" / ("a.csv" if write is write_plain else "a.png")
    with pytest.raises(BadInput, match=r"a\.(csv|png): cannot write: "):
        write(trace, place)


def small(**columns):
    return trace_of([3, 5], [2, 7], arrival_s=np.array([0.1 + 0.2, 1.0000006]), **columns)


def test_what_other_simulators_read(tmp_path):
    for form, name in (("vidur", "v.csv"), ("simdistserve", "s.json"), ("blis", "b.csv")):
        assert write_as(small(), tmp_path / name, form) == []
    again = read_trace(tmp_path / "v.csv", "vidur")
    np.testing.assert_array_equal(again.arrival_s, small().arrival_s)
    assert (again.input_len.tolist(), again.output_len.tolist()) == ([3, 5], [2, 7])
    assert json.loads((tmp_path / "s.json").read_text()) == [
        {"start_time": 0.1 + 0.2, "prompt_len": 3, "output_len": 2},
        {"start_time": 1.0000006, "prompt_len": 5, "output_len": 7},
    ]
    head, *rows = (tmp_path / "b.csv").read_text().splitlines()
    # BLIS reads by place, and its numbers must be there.
    assert head.split(",")[9:11] + head.split(",")[19:21] == [
        *("input_tokens", "output_tokens"),
        *("arrival_time_us", "send_time_us"),
    ]
    assert rows[1] == "1,,,,,0,,0,false,5,7,0,0,0,0,0,,0,0,1000001,1000001,0,0,0,ok,,"
    assert "trace_version: 2\n" in (tmp_path / "b.yaml").read_text()


def test_what_a_form_cannot_say(tmp_path):
    trace = small(priority=np.array([0, 1]))
    assert write_as(trace, tmp_path / "a.csv", "vidur") == ["priority"]
    assert write_as(trace, tmp_path / "p.csv", "plain") == []
    assert read_trace(tmp_path / "p.csv").priority.tolist() == [0, 1]
    for form, name, message in (
        ("vidur", "a.json", r"a\.json: the form vidur needs the suffix \.csv"),
        ("vidu", "a.csv", "unknown form 'vidu'; did you mean 'vidur'"),
        ("blis", "no/a.csv", "cannot write: "),
    ):
        with pytest.raises(BadInput, match=message):
            write_as(trace, tmp_path / name, form)
    assert set(form_names()) == {"plain", "vidur", "simdistserve", "blis"}
    with pytest.raises(BadInput, match="blis needs arrival times and the trace has none"):
        write_as(trace_of([1], [1]), tmp_path / "a.csv", "blis")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("old")

    def full(self, part, **options):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    with pytest.raises(BadInput, match=r"a.csv: cannot write: No space left on device"):
        write_plain(trace_of([1], [1]), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_heavy_is_imported_with_the_package():
    heavy = "{'numpy', 'scipy', 'pandas', 'pyarrow', 'pydantic', 'matplotlib', 'yaml'}"
    code = f"import sys, workloads; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names():
    import workloads

    for name in workloads.__all__:
        assert callable(getattr(workloads, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        workloads.nothing  # noqa: B018
