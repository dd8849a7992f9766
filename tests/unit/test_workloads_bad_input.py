"""Bad files and configs end in one line that names file and row, or key, and what is valid."""

import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from workloads.base import BadInput, Limits
from workloads.read import read_trace, read_within
from workloads.workload import WorkloadConfig, build, generate

HEAD = "arrival_s,input_len,output_len\n"
MOON = '{"timestamp": 0, "input_length": 5, "output_length": 6, "hash_ids": [1]}\n'
TOKENS = "expected a whole number from 1 to 2147483647"


def message(path, **options):
    with pytest.raises(BadInput) as caught:
        read_trace(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ": the file is empty"),
        (" \n \n", ": the file is empty"),
        (HEAD, ": no requests"),
        (HEAD + "\n\n", ": no requests (2 read, all dropped)"),
        (HEAD + "0,1,1\n0,x,1\n", ": row 3: input_len is 'x'; expected a number"),
        (HEAD + "0,1,1\n\n0,0,1\n", f": row 4: input_len is 0; {TOKENS}"),
        (HEAD + "0,1,1\n0,1,0\n", f": row 3: output_len is 0; {TOKENS}"),
        (HEAD + "0,1,-5\n", f": row 2: output_len is -5; {TOKENS}"),
        (HEAD + "0,1.5,5\n", f": row 2: input_len is 1.5; {TOKENS}"),
        (HEAD + "0,1,5\n0,,5\n", ": row 3: input_len is empty; expected a number"),
        (HEAD + "0,nan,5\n", ": row 2: input_len is empty; expected a number"),
        (HEAD + "0,inf,5\n", f": row 2: input_len is inf; {TOKENS}"),
        (HEAD + "0,1e400,5\n", f": row 2: input_len is inf; {TOKENS}"),
        (HEAD + "0,9999999999,5\n", f": row 2: input_len is 9999999999; {TOKENS}"),
        (HEAD + f"0,{10**30},5\n", f": row 2: input_len is {10**30}; {TOKENS}"),
        (HEAD + "0,True,5\n", ": row 2: input_len is True; expected a number"),
        (HEAD + "-1,2,5\n", ": row 2: arrival_s is -1; expected a finite time, 0 or later"),
        (HEAD + "inf,2,5\n", ": row 2: arrival_s is inf; expected a finite time, 0 or later"),
        (HEAD + "soon,2,5\n", ": row 2: arrival_s is 'soon'; expected a number"),
        (HEAD + "0,2,5\n,2,5\n", ": row 3: arrival_s is empty, other rows differ: all or none"),
        (HEAD + "0,2,5\n0,2\n", ": row 3: output_len is empty; expected a number"),
        (HEAD + "0,2,5\n0,2,5,6\n", ": malformed CSV: Expected 3 fields in line 3, saw 4"),
        (HEAD + "0,2,5,6\n", ": row 2: more fields than the header has"),
        (HEAD + '0,"2,5\n', ": malformed CSV: EOF inside string starting at row 1"),
        (
            "a,b\n1,2\n",
            ": no known format has a, b; plain lacks prompt_tokens|input_len, output_tokens|",
        ),
        (
            "arrival_s,input_len\n0,1\n",
            ": no known format has arrival_s, input_len; plain lacks output_tokens|output_len; val",
        ),
        ("1,2,3\n", ": no known format has 1, 2, 3"),
        (
            "arrival_s,input_len,output_len,priority\n0,1,1,high\n",
            ": row 2: priority is 'high'; expected a number",
        ),
        (
            "arrival_s,input_len,output_len,source\n0,1,1,a\n0,1,1,\n",
            ": row 3: source is empty; expected a name",
        ),
        (
            "arrival_s,input_len,output_len,block_hashes\n0,1,1,1;x\n",
            ": row 2: block_hashes: expected a list of integers",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,4\nnoon,3,4\n",
            ": row 3: TIMESTAMP is 'noon'; expected a date and time",
        ),
        (
            "Timestamp,Request tokens,Response tokens\n0,3,4\n1,3,0\n2,3,-4\n",
            f": row 4: Response tokens is -4; {TOKENS}",
        ),
        (MOON + "{}\n", ": row 2: timestamp is empty, other rows differ: all or none"),
        (MOON + "[1]\n", ": row 2: expected a JSON object, found [1]"),
        (MOON + '{"timestamp": 0,\n', ": row 2: not valid JSON: Expecting property name"),
        (MOON + "null\n", ": row 2: expected a JSON object, found null"),
        (MOON.replace("5", "NaN"), ": row 1: input_length is empty; expected a number"),
        (MOON.replace("5", "true"), ": row 1: input_length is True; expected a number"),
        (MOON.replace("5", "[7]"), ": row 1: input_length is [7]; expected a number"),
        (MOON.replace("5", "9" * 400), f": row 1: input_length is {'9' * 40}; {TOKENS}"),
        (MOON.replace("0", "-3"), ": row 1: timestamp is -3; expected a finite time, 0 or later"),
        (MOON.replace("[1]", '"x"'), ": row 1: hash_ids: expected a list of integers"),
        ("[" + MOON + ",", ": row 2: not valid JSON: Expecting value"),
        ("[" + MOON, ": row 2: not valid JSON: the array is cut off or lacks a comma"),
        ("[" + MOON + MOON + "]", ": row 2: not valid JSON: the array is cut off or lacks a comma"),
        ("[" + MOON + "] x", ": row 2: not valid JSON: text after the end of the array"),
        ("[]", ": no entries"),
        (MOON.replace("5", "9" * 5_000), ": row 1: not valid JSON: Exceeds the limit"),
        ("arrival_s\rinput_len", ": row 1: malformed CSV: new-line character"),
        ("a\x1b[31m,b\n", ": no known format has a?[31m, b"),
        ("[" * 100_000, ": row 1: not valid JSON: nested too deeply"),
        (
            '{"sub_requests": [], "arrival_time_ns": 0}',
            ": row 1: an agentic session (sub_requests); only flat requests can be replayed",
        ),
        (
            '{"request_throughput": 1, "total_input_tokens": 9}',
            ": no list 'input_lens': rerun vllm bench serve with --save-detailed",
        ),
        (
            '{"request_throughput": 1, "input_lens": [1, 2], "output_lens": [1]}',
            ": 'output_lens' is not a list of 2 items, as 'input_lens' is",
        ),
        (
            '[{"conversations": [{"value": "a"}, {"value": "b"}]}]',
            ": holds text; give a tokenizer: a tokenizer.json or a Hugging Face name",
        ),
        ('[{"conversations": [{"value": 1}, {}]}]', ": row 1: a turn of conversations has no text"),
        ('[{"conversations": "hello"}]', ": row 1: conversations is not a list of turns"),
        ('[{"instruction": 1, "input": "", "output": ""}]', ": row 1: no text 'instruction'"),
        (
            '{"context": "", "input": "", "answers": [""], "dataset": "lccc"}',
            ": row 1: unknown dataset 'lccc'; did you mean 'lcc'? valid: 2wikimqa,",
        ),
        (
            '{"context": "", "input": "", "answers": [], "dataset": "lcc"}',
            ": row 1: answers is not a list of texts",
        ),
    ],
)
def test_content(tmp_path, content, expected):
    path = tmp_path / "trace"
    path.write_text(content)
    found = message(path)
    assert found.startswith(expected), found


GZIP_HEAD = gzip.compress((HEAD + "0,1,1\n").encode(), mtime=0)
GZIP_MOON = gzip.compress(MOON.encode() * 99, mtime=0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (HEAD.encode() + b"0,1,1\n0,\xff,1\n", ": row 3: not UTF-8"),
        (b"arrival_s,inp\xfft_len\n", ": row 1: not UTF-8"),
        ((HEAD + "0,1,1\n").encode("utf-16"), ": row 1: not UTF-8"),
        (MOON.encode() + MOON.encode().replace(b"5", b"\xff"), ": row 2: not UTF-8"),
        (GZIP_HEAD[:-9], ": truncated or corrupt gzip after"),
        (GZIP_MOON[:-20], ": truncated or corrupt gzip after"),
        (b"\x1f\x8bnot gzip", ": truncated or corrupt gzip after 0 bytes"),
        (b"PAR1 but not Parquet", ": not a readable Parquet file: "),
    ],
)
def test_bytes(tmp_path, content, expected):
    path = tmp_path / "trace"
    path.write_bytes(content)
    assert message(path).startswith(expected)


def test_missing_file_and_folder(tmp_path):
    assert message(tmp_path / "none.csv") == ": cannot read: No such file or directory"
    assert message(tmp_path) == ": cannot read: Is a directory"


def test_named_format_that_does_not_fit(tmp_path):
    path = tmp_path / "trace"
    path.write_text(HEAD + "0,1,1\n")
    expected = ": format vidur lacks num_prefill_tokens, num_decode_tokens; has arrival_s, input"
    assert message(path, format="vidur").startswith(expected)
    assert message(path, format="mooncake") == ": format mooncake is json, this file is csv"
    with pytest.raises(BadInput, match=r"unknown format 'vidor'; did you mean 'vidur'\? valid: al"):
        read_trace(path, format="vidor")


def test_tokenizer_that_is_none(tmp_path):
    pytest.importorskip("tokenizers")
    path = tmp_path / "trace"
    path.write_text('[{"conversations": [{"value": "a"}, {"value": "b"}]}]')
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(BadInput, match=r"tokenizer .*: not a tokenizer.json"):
        read_trace(path, tokenizer=str(broken))


def test_row_limit(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEAD + "0,1,1\n" * 4)
    assert len(read_trace(path, max_rows=4)) == 4
    assert message(path, max_rows=3) == ": more than 3 rows (the limit; --max-rows raises it)"
    pd.read_csv(path).to_parquet(tmp_path / "t.parquet")
    assert message(tmp_path / "t.parquet", max_rows=3).startswith(": more than 3 rows")


class Stopped(Exception):
    pass


def test_gzip_bomb_stops_at_the_limit(tmp_path, monkeypatch):
    """400 MB of rows in 400 kB: not more than the limit and one buffer is unpacked."""
    path = tmp_path / "bomb.csv.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(HEAD.encode())
        for _ in range(100):
            file.write(b"0,1,1\n" * 170_000)
    unpacked = []
    read = gzip.GzipFile.read

    def counted(self, size=-1):
        data = read(self, size)
        unpacked.append(len(data))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(BadInput, match=r"bomb.csv.gz: more than 2000000 bytes decompressed"):
        read_within(path, Limits(max_bytes=2_000_000), "auto", None)
    assert sum(unpacked) < 3_000_000


def test_endless_line_is_not_buffered(tmp_path, monkeypatch):
    monkeypatch.setattr("workloads.streams.MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "line.csv.gz"
    path.write_bytes(gzip.compress(HEAD.encode() + b"1" * (5 << 20)))
    assert message(path) == ": a line longer than 1048576 bytes"


def test_endless_json_entry_is_not_buffered(tmp_path, monkeypatch):
    monkeypatch.setattr("workloads.json_stream.MAX_ENTRY_CHARS", 1 << 20)
    path = tmp_path / "entry.json"
    path.write_text('{"a": "' + "x" * (8 << 20))
    assert message(path).startswith(": row 1: not valid JSON: Unterminated string")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"source": "sharegtp"}, r"workload.source: unknown source .*did you mean 'sharegpt'\?.*"),
        ({"source": "longbench-poems"}, "workload.source: unknown source .* longbench-"),
        ({"source": "x" * 5_000}, "workload.source: unknown source"),
        ({"source": "no/such.csv"}, "workload.source: unknown source .nor is it a file. 'no/s"),
        ({"mixture": {"alpaca": 1, "nope": 1}}, "workload.mixture: unknown source .* 'nope'"),
        ({"source": "fixed", "output_len": 3}, "workload.input_len: source fixed needs it"),
        ({"source": "fixed", "input_len": 3}, "workload.output_len: source fixed needs it"),
        ({"arrivals": None}, "workload.arrivals: needed, since mixed has no arrival times"),
        ({"num_requests": None}, "workload.num_requests: needed"),
        ({"arrivals": {"process": "trace"}}, "arrivals.process: trace needs a file, not source"),
        (
            {"num_requests": None, "duration_s": 1e-9},
            "workload.duration_s: no arrival before 1e-09 s",
        ),
        ({"num_requests": None, "duration_s": 1e12}, r"workload.duration_s: 1e\+12 requests; at m"),
        (
            {"source": "fixed", "input_len": 9, "output_len": 9, "max_model_len": 9},
            "workload.max_model_len: 9: 0 of 5 requests drawn fit",
        ),
    ],
)
def test_config_that_cannot_be_built(config, expected):
    fields = {"num_requests": 5, "arrivals": {"process": "poisson", "rate": 1}, **config}
    with pytest.raises(BadInput, match=expected) as caught:
        build(WorkloadConfig(**fields), np.random.default_rng(0), np.random.default_rng(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"sorce": "alpaca"}, "sorce"),
        ({"num_requests": 0}, "num_requests"),
        ({"num_requests": 5, "duration_s": 5}, "give num_requests or duration_s, not both"),
        ({"source": "alpaca", "mixture": {"arxiv": 1}}, "mixture needs source: mixed"),
        ({"mixture": {}}, "mixture: needs weights above 0"),
        ({"mixture": {"alpaca": 0}}, "mixture: needs weights above 0"),
        ({"mixture": {"alpaca": float("nan")}}, "mixture"),
        ({"priorities": {0: -1}}, "priorities: needs weights above 0"),
        ({"arrivals": {"process": "poison", "rate": 1}}, "'poisson', 'gamma'"),
        ({"arrivals": {"process": "poisson", "rate": float("inf")}}, "rate"),
        ({"arrivals": {"process": "poisson", "rate": 0}}, "rate"),
        ({"arrivals": {"process": "trace", "rate": 1, "time_scale": 2}}, "time_scale or rate"),
        ({"arrivals": {"process": "all-at-once"}, "duration_s": 3}, "needs num_requests"),
        (
            {"arrivals": {"process": "burst", "rate": 1, "period_s": 1, "burst_s": 1}},
            "burst_s = 1.0 is not below period_s = 1.0",
        ),
        ({"source": "uniform", "input_len": {"low": 5, "high": 4}}, "high = 4 is below low = 5"),
        ({"source": "fixed", "input_len": {"tokens": 0}}, "tokens"),
        ({"input_len": {"dist": "pareto"}}, "'fixed', 'uniform'"),
    ],
)
def test_config_that_is_refused(config, expected):
    with pytest.raises(ValidationError, match=re.escape(expected)):
        WorkloadConfig(**config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_requests": 3}, r"workload.num_requests: 3 requests, but .* has 2; .*replacement"),
        ({"max_model_len": 2}, "no request fits max_model_len = 2"),
        ({"duration_s": 0.5}, "workload.duration_s: no arrival before 0.5 s"),
        (
            {"duration_s": 100, "arrivals": {"process": "constant", "rate": 1}},
            "workload.duration_s: 99 requests, but",
        ),
        ({"arrivals": {"process": "trace", "rate": 1}}, "arrivals.rate: .* all arrive at once"),
    ],
)
def test_trace_that_does_not_suit(tmp_path, config, expected):
    path = tmp_path / "t.csv"
    path.write_text(HEAD + "1,5,5\n1,5,5\n")
    with pytest.raises(BadInput, match=expected):
        generate(WorkloadConfig(source=str(path), **config), 0)


def test_trace_without_times(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEAD + ",5,5\n")
    config = WorkloadConfig(source=str(path), arrivals={"process": "trace"})
    with pytest.raises(BadInput, match=r"arrivals.process: trace, but .* has no arrival times"):
        generate(config, 0)


def test_registered_source_that_misbehaves(monkeypatch):
    class Entry:
        name = "broken"

        def load(self):
            return lambda rng, n: (np.zeros(n, int), np.ones(n, int))

    entries = lambda group, name=None: [Entry()] if name in (None, "broken") else []  # noqa: E731
    monkeypatch.setattr("workloads.sources.entry_points", entries)
    with pytest.raises(BadInput, match="source broken: has to give two arrays of 5 whole numbers"):
        generate(WorkloadConfig(source="broken", num_requests=5), 0)


def test_json_numbers_keep_their_rows(tmp_path):
    """An error in the second batch of entries names the row of the file."""
    path = tmp_path / "m.jsonl"
    entry = {"timestamp": 0, "input_length": 5, "output_length": 6, "hash_ids": [1]}
    lines = [json.dumps(entry)] * 1_500 + [json.dumps({**entry, "output_length": 0})]
    path.write_text("\n".join(lines))
    assert message(path) == f": row 1501: output_length is 0; {TOKENS}"
