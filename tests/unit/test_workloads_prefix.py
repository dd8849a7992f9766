"""Shared prefixes of workloads: files of block ids, Mooncake's hashes, drawn prefixes."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from sim.types import BadInput
from workloads.prefix_blocks import read_prefix_blocks
from workloads.read import read_trace
from workloads.workload import WorkloadConfig, build, generate
from workloads.write import write_plain

TRACE = "run,request,arrived_at_s,prompt_tokens,output_tokens\n"
ROWS = "a,0,0,40,1\na,1,2,40,1\na,2,1,33,1\n"
BLOCKS = "run,request,block_ids\na,0,5;6\na,2,5;6;7\n"


@pytest.fixture
def files(tmp_path):
    def files(trace=TRACE + ROWS, blocks=BLOCKS, **options):
        (tmp_path / "t.csv").write_text(trace)
        (tmp_path / "b.csv").write_text(blocks)
        return read_trace(tmp_path / "t.csv", prefix_blocks=tmp_path / "b.csv", **options)

    return files


def test_block_ids_follow_the_request_number(files):
    trace = files(hash_block_tokens=11)
    assert trace.arrival_s.tolist() == [0, 1, 2]
    assert trace.block_hashes == ((5, 6), (5, 6, 7), ())
    assert trace.hash_block_tokens == 11


def test_without_numbers_requests_count_from_0(files):
    rows = TRACE.replace("run,request,", "") + "0,40,1\n1,40,1\n2,33,1\n"
    assert files(rows, hash_block_tokens=11).block_hashes == ((5, 6), (), (5, 6, 7))


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [
        ("run,request\na,0\n", "b.csv: lacks block_ids; has run, request"),
        ("request,block_ids\n0,5;x\n", "row 2: request 0, block_ids 5;x: expected whole numbers"),
        ("request,block_ids\n0,5\n0,6\n", "row 3: request 0 has two rows"),
        ("request,block_ids\n9,5\n", "1 of its requests are not in"),
        ("run,request,block_ids\na,0,5\nb,1,5\n", "row 3: has several runs (a, b)"),
        ("request,block_ids\n0,1;2;3\n", "request 0 has 3 blocks of 16 tokens, its prompt in"),
        ("request,block_ids\n", "no requests"),
    ],
)
def test_bad_files_of_blocks(files, blocks, wanted):
    with pytest.raises(BadInput) as caught:
        files(blocks=blocks)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_run_of_several(tmp_path):
    path = tmp_path / "b.csv.gz"
    path.write_bytes(gzip.compress(b"run,request,block_ids\na,0,5\nb,1,6;7\n"))
    assert read_prefix_blocks(path, "b") == {1: (6, 7)}


def test_mooncake_covers_the_whole_prompt(tmp_path):
    path = tmp_path / "m.jsonl"
    row = {"timestamp": 0, "input_length": 1025, "output_length": 1, "hash_ids": [1, 2, 3]}
    path.write_text(json.dumps(row))
    trace = read_trace(path)
    assert (trace.block_hashes, trace.hash_block_tokens) == (((1, 2, 3),), 512)
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "hash_ids": [1, 2]}))
    with pytest.raises(
        BadInput, match="row 2: hash_ids has 2 ids, the prompt of 1025 tokens has 3"
    ):
        read_trace(path)


def test_the_size_of_hashed_blocks_survives_conversion(tmp_path):
    row = {"timestamp": 0, "input_length": 700, "output_length": 1, "hash_ids": [1, 2]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    write_plain(read_trace(tmp_path / "m.jsonl"), tmp_path / "t.csv")
    again = read_trace(tmp_path / "t.csv")
    assert (again.block_hashes, again.hash_block_tokens) == (((1, 2),), 512)
    text = "input_len,output_len,block_hashes,hash_block_tokens\n9,1,1,8\n9,1,1,16\n"
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadInput, match="hash_block_tokens: expected one size"):
        read_trace(tmp_path / "t.csv")


def test_prefix_len_is_a_name_too(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("input_len,output_len,prefix_group,prefix_len\n9,1,4,8\n9,1,,\n")
    trace = read_trace(path)
    assert trace.prefix_group.tolist() == [4, -1]
    assert trace.prefix_len.tolist() == [8, 0]


def drawn(**fields):
    fields = {"source": "fixed", "input_len": 100, "output_len": 50, "num_requests": 2000} | fields
    return generate(WorkloadConfig(**fields), 0)


def test_drawn_prefixes_come_on_top():
    trace = drawn(shared_prefix={"groups": 4, "tokens": 30, "share": 0.25})
    has = trace.prefix_group >= 0
    assert has.mean() == pytest.approx(0.25, abs=0.04)
    assert set(trace.prefix_group[has]) == {0, 1, 2, 3}
    assert set(trace.input_len[has]) == {130}
    assert set(trace.input_len[~has]) == {100}
    assert set(trace.prefix_len[has]) == {30}
    np.testing.assert_array_equal(trace.output_len, drawn().output_len)


def test_drawn_prefixes_keep_to_the_model():
    trace = drawn(shared_prefix={"tokens": 500}, max_model_len=300)
    assert set(trace.input_len) == {250}
    assert set(trace.prefix_len) == {250}
    assert trace.notes["truncated"] == 2000


def test_what_does_not_go_together(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_len,output_len,prefix_group,prefix_len\n0,9,1,4,8\n")
    rngs = [np.random.default_rng(seed) for seed in (0, 1)]
    with pytest.raises(BadInput, match="has prefixes of its own"):
        build(WorkloadConfig(source=str(path), shared_prefix={"tokens": 5}), *rngs)
    with pytest.raises(BadInput, match=r"workload.prefix_blocks: needs a trace file, not source"):
        drawn(prefix_blocks=str(path))
