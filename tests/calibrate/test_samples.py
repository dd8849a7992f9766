"""The measurement CSV: written row by row, read back whole, damaged lines named."""

from dataclasses import replace

import pytest
from synthetic import TERMS, grid, measured, step

from calibrate.samples import COLUMNS, HEADER, Sample, SampleWriter, read_samples
from sim.types import BadInput

COLUMNS_OF_THE_CONTRACT = (
    "phase,padded,lengths,chunks,new_tokens,context_tokens,quad_tokens,batch,kv_tokens,"
    "step_tokens,runs,device_ms,wall_ms,fastest_ms,spread_frac,peak_bytes,sm_clock_mhz,power_w,"
    "status"
)


def write(path, samples):
    with SampleWriter(path) as writer:
        for sample in samples:
            writer.append(sample)
    return path


@pytest.fixture
def rows():
    return [
        replace(s, device_ms=float(f"{s.device_ms:.6g}"), wall_ms=float(f"{s.wall_ms:.6g}"))
        for s in measured(TERMS, grid()[::20], noise=0.03)
    ]


def test_columns():
    assert HEADER == COLUMNS_OF_THE_CONTRACT


def test_round_trip(tmp_path, rows):
    rows[1] = replace(rows[1], status="oom", device_ms=None, wall_ms=None)
    rows[2] = replace(
        rows[2],
        peak_bytes=123,
        sm_clock_mhz=1980.0,
        power_w=512.5,
        spread_frac=0.01,
        fastest_ms=1.5,
    )
    path = write(tmp_path / "samples.csv", rows)
    assert read_samples(path) == (rows, [])


def test_each_row_is_on_the_disk_at_once(tmp_path, rows):
    path = tmp_path / "samples.csv"
    with SampleWriter(path) as writer:
        for count, row in enumerate(rows, start=1):
            writer.append(row)
            assert len(read_samples(path)[0]) == count


def test_a_cut_row_costs_only_itself(tmp_path, rows):
    path = write(tmp_path / "samples.csv", rows[:4])
    whole = path.read_bytes()
    last = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
    for length in range(len(last) + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        read, complaints = read_samples(path)
        assert read == rows[:3]
        assert len(complaints) == 1
        assert complaints[0].startswith(f"{path}:5: ")
        write(path, rows[4:6])  # going on after the cut
        assert read_samples(path) == (rows[:3] + rows[4:6], complaints)


DAMAGE = {
    "3 columns instead of 19": "prefill,0,16",
    "device_ms 'fast' is not": {"device_ms": "fast"},
    "device_ms 'nan' is not": {"device_ms": "nan"},
    "device_ms must be > 0": {"device_ms": ""},
    "wall_ms '-1' is not": {"wall_ms": "-1"},
    "batch '-3' is not int": {"batch": "-3"},
    "padded '2' is not bool": {"padded": "2"},
    "phase 'warm', valid: prefill, decode": {"phase": "warm"},
    "status 'fine', valid: ok, oom": {"status": "fine"},
    "step_tokens 7 is not new_tokens": {"step_tokens": "7"},
    "0 chunks, 8 new tokens": {"chunks": "0"},
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_lines_are_named_and_skipped(tmp_path, rows, what):
    path = write(tmp_path / "samples.csv", rows)
    lines = path.read_text().splitlines()
    damage = DAMAGE[what]
    if isinstance(damage, dict):
        values = dict(zip(COLUMNS, lines[1].split(","), strict=True)) | damage
        damage = ",".join(values.values())
    lines[1] = damage
    path.write_text("\n".join(lines) + "\n")
    read, complaints = read_samples(path)
    assert read == rows[1:]
    assert len(complaints) == 1
    assert complaints[0].startswith(f"{path}:2: {what}")


def test_bytes_that_are_no_text_cost_one_line(tmp_path, rows):
    path = write(tmp_path / "samples.csv", rows)
    lines = path.read_bytes().splitlines()
    lines[3] = b"\xff\x00\xfe," * 18 + b"ok"
    path.write_bytes(b"\r\n".join(lines))
    read, complaints = read_samples(path)
    assert read == rows[:2] + rows[3:]
    assert len(complaints) == 1


def test_a_point_measured_again_replaces_the_first(tmp_path, rows):
    oom = replace(rows[0], status="oom", device_ms=None, wall_ms=None)
    path = write(tmp_path / "samples.csv", [oom, rows[1], rows[0]])
    assert read_samples(path) == ([rows[0], rows[1]], [])


@pytest.mark.parametrize("text", ["", "phase,padded\n", "a b c\n"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "samples.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"samples\.csv:1: not a measurement file"):
        read_samples(path)
    if text:
        with pytest.raises(BadInput, match="not a measurement file"):
            SampleWriter(path)
        assert path.read_text() == text


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match=r"none\.csv: cannot be read"):
        read_samples(tmp_path / "none.csv")


def test_kind_is_what_the_step_holds():
    assert step([(8, 0)]).kind == "prefill"
    assert step((), [9]).kind == "decode"
    assert step([(8, 0)], [9]).kind == "mixed"
    host = Sample("host", False, "d4x1", 0, 0, 0, 0, 4, 4, 4, status="refused")
    assert host.kind == "decode"
