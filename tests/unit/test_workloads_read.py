"""Every trace format is read as its public description says (`fixtures/workloads/SOURCES.md`)."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workloads.base import BadInput
from workloads.read import format_names, read_trace
from workloads.write import write_plain

FIXTURES = Path(__file__).parents[1] / "fixtures" / "workloads"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer of words, with a begin-of-sequence token, and padding and truncation left on."""
    tokenizers = pytest.importorskip("tokenizers")
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "<s>": 1}, "?"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    built.enable_padding()
    built.enable_truncation(3)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    built.save(str(path))
    return str(path)


# file -> (format, arrival_s, input_len, output_len), worked out by hand from the fixture.
EXPECTED = {
    "azure2023.csv": (
        "azure",
        # The last row is the second in time: 51 - 46.68059 s.
        [0, 4.314579, 4.31941, 4.541877],
        [374, 396, 91, 879],
        [44, 109, 16, 55],
    ),
    "azure2024.csv": ("azure", [0, 0.007405, 0.99007], [2162, 2399, 76], [5, 6, 15]),
    "burstgpt.csv": ("burstgpt", [5, 45, 119], [472, 1087, 25], [18, 230, 276]),
    "vidur.csv": ("vidur", [0, 4.314579, 4.541877], [374, 396, 879], [44, 109, 55]),
    "vidur_lengths.csv": ("vidur", None, [3772, 2015], [54, 156]),
    "splitwise.csv": ("splitwise", [1, 3, 4.5], [4096, 2048, 2048], [32, 8, 16]),
    "mooncake.jsonl": ("mooncake", [0, 0, 3.001], [1500, 700, 12], [500, 490, 3]),
    "llmservingsim.jsonl": ("llmservingsim", [0, 1.5], [128, 7], [512, 1]),
    # The second request failed; times count from the first.
    "vllm.json": ("vllm", [0, 1.75], [10, 30], [5, 7]),
    "plain.csv": ("plain", [0.5, 1.25, 2.0], [100, 200, 300], [10, 20, 30]),
    # Counts below include <s>. c: prompt of 3; d: 4 + <s> and 3 + <s> = 4 are long enough.
    "sharegpt.json": ("sharegpt", None, [6, 5, 7], [5, 4, 9]),
    # <s> + 6 words + 3 words + 91; <s> + 5 words + 43. Outputs: the longest answer.
    "longbench.jsonl": ("longbench", None, [101, 49], [3, 3]),
    # <s> + 3; <s> + 2 + 3, instruction and input on two lines.
    "alpaca.json": ("alpaca", None, [4, 6], [4, 1]),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("named", [False, True])
def test_format(name, named, tokenizer):
    format, arrival, input_len, output_len = EXPECTED[name]
    trace = read_trace(FIXTURES / name, format if named else "auto", tokenizer=tokenizer)
    if arrival is None:
        assert trace.arrival_s is None
    else:
        np.testing.assert_allclose(trace.arrival_s, arrival, rtol=0, atol=1e-12)
    assert trace.input_len.tolist() == input_len
    assert trace.output_len.tolist() == output_len
    assert trace.sources == (name.split(".")[0],) or name == "plain.csv"


def test_every_format_has_a_sample():
    assert sorted({row[0] for row in EXPECTED.values()}) == format_names()


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("azure2023.csv", {"read": 4, "dropped": 0, "sorted": 1}),
        ("burstgpt.csv", {"read": 4, "dropped": 1, "dropped_failed": 1, "sorted": 0}),
        ("vllm.json", {"read": 3, "dropped": 1, "dropped_failed": 1, "sorted": 0}),
        ("sharegpt.json", {"read": 5, "dropped": 2, "dropped_turns": 1, "dropped_length": 1}),
        ("alpaca.json", {"read": 3, "dropped": 1, "dropped_no_output": 1}),
    ],
)
def test_what_was_left_out_is_counted(name, notes, tokenizer):
    assert read_trace(FIXTURES / name, tokenizer=tokenizer).notes == notes


def test_sharegpt_drops_long_prompts_and_long_sums(tmp_path, tokenizer):
    def entry(prompt, output):
        turns = ["a " * prompt, "b " * output]
        return '{"conversations": [{"value": "%s"}, {"value": "%s"}]}' % tuple(turns)  # noqa: UP031

    # <s> makes 1,024 and 2,048 of 1,023 and 1,023: the longest that stay.
    pairs = [(1023, 1023), (1024, 10), (1023, 1024), (3, 3)]
    path = tmp_path / "s.json"
    path.write_text("[" + ",".join(entry(*pair) for pair in pairs) + "]")
    trace = read_trace(path, tokenizer=tokenizer)
    assert trace.input_len.tolist() == [1024, 4]
    assert trace.output_len.tolist() == [1024, 4]


def test_plain_optional_columns():
    trace = read_trace(FIXTURES / "plain.csv")
    assert trace.priority.tolist() == [1, 0, 0]
    assert [trace.tasks[i] for i in trace.task] == ["online", "offline", "online"]
    assert [trace.sources[i] for i in trace.source] == ["chat", "code", "chat"]
    assert trace.prefix_group.tolist() == [7, -1, 7]
    assert trace.prefix_len.tolist() == [0, 0, 64]
    assert trace.block_hashes == ((1, 2), (3,), (1, 4))


def test_one_hash_a_row_is_a_number_to_a_table_reader(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("input_len,output_len,block_hashes\n1,1,12345678\n1,1,\n")
    assert read_trace(path).block_hashes == ((12345678,), ())


def test_mooncake_keeps_hash_ids():
    assert read_trace(FIXTURES / "mooncake.jsonl").block_hashes == ((0, 1, 2), (0, 14), (46,))


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_plain_round_trip(tmp_path, suffix):
    trace = read_trace(FIXTURES / "plain.csv")
    path = tmp_path / f"t.{suffix}"
    write_plain(trace, path)
    again = read_trace(path)
    for name in ("arrival_s", "input_len", "output_len", "priority", "task", "source"):
        np.testing.assert_array_equal(getattr(trace, name), getattr(again, name))
    for name in ("tasks", "sources", "block_hashes"):
        assert getattr(trace, name) == getattr(again, name)
    np.testing.assert_array_equal(trace.prefix_group, again.prefix_group)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "header", ["arrived_at_s,prompt_tokens,output_tokens", "x,input_len,output_len"]
)
def test_empty_arrival_column_means_no_times(tmp_path, header):
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n,5,6\n,7,8\n")
    trace = read_trace(path)
    assert trace.arrival_s is None
    assert trace.input_len.tolist() == [5, 7]


def test_unsorted_rows_move_together(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "arrival_s,input_len,output_len,block_hashes\n3,1,1,1\n1,2,2,2;3\n3,3,3,\n0,4,4,5\n"
    )
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [0, 1, 3, 3]
    assert trace.input_len.tolist() == [4, 2, 1, 3]  # equal times keep their order
    assert trace.block_hashes == ((5,), (2, 3), (1,), ())
    assert trace.notes["sorted"] == 2  # rows that arrive before the row above them


def test_equal_times_keep_the_order_of_the_file(tmp_path):
    path = tmp_path / "t.csv"
    rows = "".join(f"{5 - i % 3},{i + 1},1\n" for i in range(3_000))
    path.write_text("arrival_s,input_len,output_len\n" + rows)
    expected = [i + 1 for offset in (2, 1, 0) for i in range(offset, 3_000, 3)]
    assert read_trace(path).input_len.tolist() == expected


def test_blank_lines_are_left_out_and_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffarrival_s, input_len ,output_len\n0,1,1\n\n1,2,2\n\n", encoding="utf-8")
    trace = read_trace(path)
    assert len(trace) == 2
    assert trace.notes == {"read": 4, "dropped": 2, "dropped_blank": 2, "sorted": 0}


@pytest.mark.parametrize("name", ["mooncake.jsonl", "azure2023.csv"])
def test_gzip_is_recognised_without_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress((FIXTURES / name).read_bytes()))
    assert read_trace(path).input_len.tolist() == EXPECTED[name][2]


def test_json_split_at_every_byte(tmp_path, monkeypatch):
    """Objects are found wherever the pieces of the file end, in characters of several bytes too."""
    path = tmp_path / "m.json"
    entry = '{"timestamp": 1, "input_length": 5, "output_length": 6, "hash_ids": [1], "é": "…]}"}'
    path.write_text(f" [{entry} ,\n{entry}]\n", encoding="utf-8")
    for size in range(1, 40):
        monkeypatch.setattr("workloads.json_stream.CHUNK_BYTES", size)
        assert read_trace(path).input_len.tolist() == [5, 5]


def test_chunks_of_a_table_join(tmp_path, monkeypatch):
    """Row numbers, times and names go on from one chunk to the next."""
    monkeypatch.setattr("workloads.streams.CHUNK_ROWS", 2)
    path = tmp_path / "t.csv"
    rows = [f"{i},{i + 1},{i + 2},{'ab'[i % 2]}" for i in range(5)]
    path.write_text("\n".join(["arrival_s,input_len,output_len,source", *rows]))
    trace = read_trace(path)
    assert trace.input_len.tolist() == [1, 2, 3, 4, 5]
    assert trace.sources == ("a", "b")
    path.write_text("\n".join(["arrival_s,input_len,output_len,source", *rows, "5,x,1,a"]))
    with pytest.raises(BadInput, match="row 7: input_len is 'x'"):
        read_trace(path)
    azure = tmp_path / "azure.csv"
    text = (FIXTURES / "azure2023.csv").read_text()
    azure.write_text(text.replace("Tokens\n", "Tokens\n\n\n"))  # the first chunk has no time
    np.testing.assert_allclose(
        read_trace(azure).arrival_s, EXPECTED["azure2023.csv"][1], atol=1e-12
    )


MEASURE = """
import resource, sys, pandas
from workloads.read import read_trace
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
trace = read_trace(sys.argv[1])
print((peak() - before) / (24 * len(trace)))
"""


def test_memory_stays_below_one_and_a_half_times_the_columns(tmp_path, record_property):
    path = tmp_path / "big.csv"
    block = "1.25,1000,100\n" * 100_000
    with path.open("w") as file:
        file.write("arrival_s,input_len,output_len\n")
        file.writelines(block for _ in range(40))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    figure = f"{float(done.stdout):.2f} x the columns, 4 million rows"
    record_property("evidence", f"peak memory of reading a trace: {figure}")
    assert float(done.stdout) < 1.5
