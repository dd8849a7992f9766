"""Measured runs as files have them: vLLM's benchmark results, tables, block ids."""

import gzip
import json
import math

import numpy as np
import pytest

from sim.study.fidelity.bench_file import redrawn_arrivals
from sim.study.fidelity.measured import in_flight, read_measured
from sim.study.fidelity.run_table import read_prefix_blocks
from sim.types import BadInput

RESULT = {
    "model_id": "meta-llama/Llama-3.1-8B-Instruct",
    "request_rate": 2.0,
    "burstiness": 1.0,
    "max_concurrency": None,
    "duration": 9.0,
    "completed": 3,
    "total_input_tokens": 60,
    "request_throughput": 0.3,
    "input_lens": [10, 20, 30],
    "output_lens": [3, 1, 2],
    "ttfts": [0.1, 0.2, 0.3],
    "itls": [[0.01, 0.03], [], [0.05]],
    "errors": ["", "", ""],
}


def write(path, **changes):
    data = {key: value for key, value in (RESULT | changes).items() if value != "gone"}
    path.write_text(json.dumps(data))
    return path


def message(path, **arguments):
    with pytest.raises(BadInput) as caught:
        read_measured(path, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_start_times_are_the_arrivals(tmp_path):
    path = write(tmp_path / "r.json", start_times=[105.0, 100.0, 102.5])
    found = read_measured(path)
    assert found.paired
    assert found.arrival_s.tolist() == [0.0, 2.5, 5.0]
    assert found.trace.input_len.tolist() == [20, 30, 10]
    assert found.latency_ms["ttft"].tolist() == [200.0, 300.0, 100.0]
    assert found.latency_ms["e2el"] == pytest.approx([200.0, 350.0, 140.0])
    tpot = found.latency_ms["tpot"]
    assert math.isnan(tpot[0])
    assert tpot[1:] == pytest.approx([50.0, 20.0])
    assert found.hints == {"model": "meta-llama/Llama-3.1-8B-Instruct"}


def test_without_start_times_arrivals_are_redrawn_and_said(tmp_path):
    found = read_measured(write(tmp_path / "r.json"), seed=7)
    assert not found.paired
    assert found.notes == ("arrivals reconstructed: per-request errors not shown",)
    assert found.arrival_s == pytest.approx(redrawn_arrivals(3, 2.0, 1.0, 7))


def test_redrawn_arrivals_are_those_of_the_benchmark():
    # vllm/benchmarks/serve.py, get_request: gamma gaps one by one, the sum scaled to n / rate
    np.random.seed(3)
    gaps = [np.random.gamma(shape=0.5, scale=1.0 / (4.0 * 0.5)) for _ in range(50)]
    times = np.cumsum(gaps)
    times *= 50 / 4.0 / times[-1]
    assert redrawn_arrivals(50, 4.0, 0.5, 3) == pytest.approx(times - times[0])
    even = redrawn_arrivals(5, 2.0, math.inf, 0)
    assert np.diff(even) == pytest.approx([0.5] * 4)
    assert redrawn_arrivals(3, math.inf, 1.0, 0).tolist() == [0, 0, 0]


def test_clients_without_a_rate_are_a_closed_loop(tmp_path):
    path = write(tmp_path / "r.json", request_rate="inf", max_concurrency=2)
    found = read_measured(path)
    assert (found.arrivals, found.concurrency) == ("closed", 2)


def test_failed_requests_are_left_out_and_counted(tmp_path):
    path = write(
        tmp_path / "r.json",
        start_times=[1.0, 2.0, 3.0],
        errors=["timeout", "", ""],
        output_lens=[0, 1, 2],
        itls=[[], [], [0.05]],
    )
    found = read_measured(path)
    assert len(found.trace) == 2
    assert found.notes == ("1 failed requests left out: the load was higher",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ttfts": "gone"}, "no list 'ttfts': run vllm bench serve again with --save-detailed"),
        ({"itls": "gone", "ttfts": "gone", "input_lens": "gone"}, "--save-detailed"),
        ({"itls": [[0.1]]}, "'itls' has 1 items, 'input_lens' has 3"),
        ({"ttfts": [0.1, -1, 0.2]}, "'ttfts' item 2 is -1; expected seconds"),
        ({"input_lens": [1, 2.5, 3]}, "'input_lens' item 2 is 2.5; expected a whole number"),
        ({"request_rate": "gone"}, "neither 'start_times' nor 'request_rate'"),
        ({"request_rate": 0}, "'request_rate' is 0; expected a number above 0"),
        ({"start_times": [1.0, None, 2.0]}, "'start_times' item 2 is None; not a time"),
        ({"errors": ["a", "b", "c"]}, "all 3 requests failed"),
    ],
)
def test_bad_results_name_the_field(tmp_path, changes, said):
    assert said in message(write(tmp_path / "r.json", **changes))


def test_results_of_another_tool_name_a_missing_field(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"mean_latency": 3, "p99": 4}')
    assert "no field 'ttfts', not a result of vllm bench serve; has mean_latency" in message(path)
    path.write_text("[1]")
    assert "got a list" in message(path)
    path.write_text("{")
    assert "not one JSON object" in message(path)
    assert "no such file" in message(tmp_path / "none.json")


# -- tables -------------------------------------------------------------------------------------

TABLE = """run,request,arrived_at_s,prompt_tokens,output_tokens,ttft_ms,tpot_ms,latency_ms,\
prefix_group,shared_prefix_tokens
a,7,1.0,40,3,100,10,120,0,32
a,3,0.5,50,1,90,0,90,0,0
b,1,0.0,10,2,50,5,55,,0
"""


def table(path, text=TABLE):
    path.write_text(text)
    return path


def test_a_table_is_read_in_order_of_arrival(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(TABLE.encode()))
    found = read_measured(path, run="a")
    assert found.arrival_s.tolist() == [0.0, 0.5]
    assert found.latency_ms["e2el"].tolist() == [90, 120]
    assert found.latency_ms["tpot"][1] == 10
    assert math.isnan(found.latency_ms["tpot"][0])
    assert found.trace.prefix_group.tolist() == [0, 0]
    assert found.trace.prefix_len.tolist() == [0, 32]
    assert found.duration_s == pytest.approx(0.62)


def test_several_runs_need_a_choice(tmp_path):
    path = table(tmp_path / "t.csv")
    assert "2 runs; choose one with --run: a, b" in message(path)
    assert "--run c: not in" in message(path, run="c")


def test_tpot_stands_for_a_missing_latency(tmp_path):
    path = table(
        tmp_path / "t.csv",
        "arrival_s,input_len,output_len,ttft_ms,tpot_ms\n0,5,3,10,2\n1,5,3,,\n",
    )
    found = read_measured(path)
    assert found.latency_ms["e2el"].tolist() == [14]
    assert found.notes == ("1 rows without ttft_ms left out: the load was higher",)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ttft_ms", "first", "no column 'ttft_ms'; has run, request"),
        ("latency_ms", "x", None),
        ("b,1,0.0,10,2,50,5,55", "a,1,0.0,0,2,50,5,55", "row 3: prompt_tokens is 0; expected"),
        ("b,1,0.0,10,2,50,5,55", "a,1,0.0,10,2,50,5,45", "row 3: latency_ms is 45; expected no"),
        ("b,1,0.0,10,2,50,5,55", "a,1,0.0,10,2,fast,5,55", "row 3: ttft_ms is 'fast'; not a"),
        ("b,1,0.0,10,2,50,5,55", "a,1,,10,2,50,5,55", "row 3: arrived_at_s is nan; expected a"),
    ],
)
def test_bad_tables_name_row_and_value(tmp_path, old, new, said):
    path = table(tmp_path / "t.csv", TABLE.replace(old, new))
    if said is None:
        assert read_measured(path, run="a").latency_ms["e2el"][1] == 120
    else:
        assert said in message(path, run="a")


def test_block_ids_beside_a_table(tmp_path):
    measured = read_measured(table(tmp_path / "t.csv"), run="a")
    side = tmp_path / "blocks.csv"
    side.write_text("run,request,block_ids\na,7,4;5\na,3,4\nb,1,9\n")
    found = read_prefix_blocks(side, measured)
    assert found.trace.block_hashes == ((4,), (4, 5))
    assert found.trace.prefix_group is None
    assert [n for n in found.notes if "prefix" in n] == [
        "shared prefixes: block ids of 2 requests from blocks.csv"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run,request,block_ids\na,8,4\n", "request 8 is not in"),
        ("run,request,block_ids\na,7,4;5;6\n", "request 7 lists 3 blocks of 16 tokens, its prompt"),
        ("run,request,block_ids\na,7,4;x\n", "request 7: block_ids has 'x'; not an id"),
        ("run,ids\na,7\n", "no column 'request'; has run, ids"),
        ("run,request,block_ids\nc,7,4\n", "--run a: not in"),
    ],
)
def test_bad_block_ids(tmp_path, text, said):
    measured = read_measured(table(tmp_path / "t.csv"), run="a")
    side = tmp_path / "blocks.csv"
    side.write_text(text)
    with pytest.raises(BadInput, match=said.replace("(", r"\(")):
        read_prefix_blocks(side, measured)


def test_in_flight_counts_the_others():
    arrival = np.array([0.0, 1.0, 1.0, 3.0])
    e2e_ms = np.array([2000.0, 1000.0, 5000.0, 10.0])
    # the first is there when the next two come at once; of those one has left at 2 s
    assert in_flight(arrival, e2e_ms).tolist() == [0, 1, 1, 1]
