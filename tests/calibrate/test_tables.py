"""Reading operator tables, and what lies between their points."""

import numpy as np
import pytest
from operator_tables import matrix_tables, write

from calibrate.tables import (
    COLUMNS,
    LogGrid,
    between,
    catalogue_model,
    filled,
    kind_of,
    line,
    pivot,
    read_tables,
)
from sim.types import BadInput

HEADER = "gpu,m,n,k,time_ms"


def read_gemm(tmp_path, *rows, header=HEADER, name="gemm.csv"):
    write(tmp_path / name, header, rows)
    return read_tables(tmp_path, "h100")["gemm"]


def test_kinds_by_name(tmp_path):
    names = {
        "gemm.csv": "gemm",
        "my_gemm.csv.gz": "gemm",
        "a_context_attention.csv": "context_attention",
        "a_attention.csv.gz": "attention",
        "x_per_sequence.csv": "per_sequence",
        "gemm.json": None,
        "mygemm.csv": None,
        "vidur_layer_ops_h100.csv.gz": None,
    }
    assert {name: kind_of(tmp_path / name) for name in names} == names


def test_every_kind_names_a_gpu_and_ends_in_a_time():
    for columns in COLUMNS.values():
        assert columns[0] == "gpu"
        assert columns[-1] in ("time_ms", "time_us")


def test_rows_of_the_gpu_under_either_name(tmp_path):
    table = read_gemm(
        tmp_path,
        ("h100", 1, 2, 3, 4.0),
        ("NVIDIA H100 80GB HBM3", 2, 2, 3, 5.0),
        ("h200", 3, 2, 3, 6.0),
    )
    assert table.numbers("m").tolist() == [1, 2]
    assert table.rows["at"].tolist() == [f"{tmp_path / 'gemm.csv'}:2", f"{tmp_path / 'gemm.csv'}:3"]


def test_packed_files_and_microseconds(tmp_path):
    write(
        tmp_path / "x_dense.csv.gz",
        "gpu,model,tp,layer,tokens,time_us",
        [("RTX4090", "meta-llama/Llama-3.1-8B", 1, "o_proj", 16, 1500)],
    )
    table = read_tables(tmp_path, "rtx-4090")["dense"]
    assert table.numbers("ms").tolist() == [1.5]
    assert catalogue_model(table.rows["model"].iloc[0]) == "llama-3.1-8b"
    assert catalogue_model("meta-llama/Llama-2-7b-hf") == "llama-2-7b"


def test_rows_that_do_not_count(tmp_path):
    table = read_gemm(
        tmp_path,
        ("h100", 1, 2, 3, 4.0, "bfloat16", 0),
        ("h100", 2, 2, 3, 5.0, "fp8", 0),
        ("h100", 3, 2, 3, 5.0, "bfloat16", 128),
        header=f"{HEADER},gemm_dtype,window_size",
    )
    assert table.numbers("m").tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        ([("h100", 1, 2, 3, 4), ("h100", "x", 2, 3, 4)], ["gemm.csv:3: m: 'x'", "> 0"]),
        ([("h100", 1, 2, 3, -4)], ["gemm.csv:2: time_ms: '-4'"]),
        ([("h100", 1, 0, 3, 4)], ["gemm.csv:2: n: '0'"]),
        ([("h100", 1, 2, 3, "nan")], ["gemm.csv:2: time_ms: 'nan'"]),
        ([("h100", 1, 2, "", 4)], ["gemm.csv:2: k: ''"]),
        ([("h200", 1, 2, 3, "inf")], ["gemm.csv:2: time_ms: 'inf'"]),
        ([("h100", 1, 2, 3)], ["gemm.csv:2: time_ms"]),
        ([("h100", 1, 2, 3, 4), ("h100", 1, 2, 3, 4, 5)], ["gemm.csv", "line 3"]),
        ([("l40s", 1, 2, 3, 4)], ["no operator tables of h100", "l40s"]),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, texts):
    with pytest.raises(BadInput) as error:
        read_gemm(tmp_path, *rows)
    assert "\n" not in str(error.value)
    for text in texts:
        assert text in str(error.value)


def test_a_missing_column_is_named_with_all_there_should_be(tmp_path):
    with pytest.raises(BadInput, match=r"gemm.csv:1: column 'k' is missing; .* gpu, m, n, k"):
        read_gemm(tmp_path, ("h100", 1, 2, 3), header="gpu,m,n,time_ms")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"\x1f\x8b\x08broken"])
@pytest.mark.parametrize("name", ["gemm.csv", "gemm.csv.gz"])
def test_a_file_that_is_no_table(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name) as error:
        read_tables(tmp_path, "h100")
    assert "\n" not in str(error.value)


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(BadInput, match="no folder"):
        read_tables(tmp_path / "none", "h100")
    with pytest.raises(BadInput, match="no operator tables of h100"):
        read_tables(tmp_path, "h100")


def test_several_files_of_a_kind_are_one_table(tmp_path):
    write(tmp_path / "a_gemm.csv", HEADER, [("h100", 1, 2, 3, 4)])
    write(tmp_path / "b_gemm.csv", HEADER, [("h100", 2, 2, 3, 4)])
    table = read_tables(tmp_path, "h100")["gemm"]
    assert [path.name for path in table.files] == ["a_gemm.csv", "b_gemm.csv"]
    assert table.numbers("m").tolist() == [1, 2]


def test_made_tables_are_read(tmp_path):
    matrix_tables(tmp_path)
    tables = read_tables(tmp_path, "h100")
    assert set(tables) == {"gemm", "context_attention", "generation_attention", "custom_allreduce"}
    assert len(tables["custom_allreduce"].rows) == 9  # the eager ones do not count


# -- between the points -------------------------------------------------------------------------


def test_line():
    xs, ys = np.array([2.0, 4.0, 8.0]), np.array([1.0, 3.0, 4.0])
    assert line([1, 2, 3, 6, 8, 16], xs, ys).tolist() == [1, 1, 2, 3.5, 4, 8]


def test_a_power_law_is_met_exactly_inside_and_outside():
    x, y = np.array([1.0, 4.0, 100.0]), np.array([2.0, 10.0])
    grid = LogGrid(x, y, 3 * np.outer(x**0.5, y**1.5))
    at_x, at_y = np.array([1.0, 3.0, 400.0, 0.1]), np.array([2.0, 7.0, 50.0, 1.0])
    assert grid.at(at_x, at_y) == pytest.approx(3 * at_x**0.5 * at_y**1.5)


def test_a_grid_of_one_row():
    grid = LogGrid(np.array([5.0]), np.array([1.0, 10.0]), np.array([[2.0, 20.0]]))
    assert grid.at(np.array([1.0, 99.0]), np.array([4.0, 4.0])) == pytest.approx([8, 8])


def test_neighbours_and_weights():
    axis = np.array([8.0, 16.0, 64.0])
    assert between(axis, 32.0) == [(1, pytest.approx(0.5)), (2, pytest.approx(0.5))]
    assert between(axis, 40.0, logs=False) == [(1, 0.5), (2, 0.5)]
    assert between(axis, 8.0) == [(0, 1.0), (1, 0.0)]
    assert between(np.array([3.0]), 9.0) == [(0, 1.0)]


def test_pivot_takes_the_median_of_repeated_rows(tmp_path):
    rows = [("h100", 1, 2, 3, t) for t in (1, 2, 9)] + [("h100", 4, 2, 3, 5)]
    table = read_gemm(tmp_path, *rows, ("h100", 4, 8, 3, 6))
    (m, n), ms = pivot(table.rows, ("m", "n"))
    assert m.tolist() == [1, 4]
    assert n.tolist() == [2, 8]
    assert ms[0, 0] == 2
    assert np.isnan(ms[0, 1])
    assert ms[1].tolist() == [5, 6]


def test_filling():
    sizes = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    ms = np.array([[np.nan, 3.0, np.nan, 12.0, np.nan], [np.nan] * 5])
    found = filled(sizes, ms, 1)
    assert found[0] == pytest.approx([3, 3, 6, 12, 24])
    assert np.isnan(found[1]).all()
    assert filled(sizes, ms.T, 0).T[0] == pytest.approx(found[0])
