"""`make calibrate-gpu` from end to end on a stand-in for the GPU: every step but the kernels."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from gpu_standins import Standin, capture, in_place

from calibrate import measure, points, rig, runner
from calibrate.attention import varlen
from calibrate.graphs import DecodeGraphs
from calibrate.model import Transformer
from calibrate.replay import Scenario, replay_folder
from calibrate.runner import Chunk
from calibrate.samples import read_samples
from sim.cli import main
from sim.costs.catalogue import model_named

SHORT = Scenario(seconds=0.2, max_model_len=64, max_output_len=8, loads=(0.8,))


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Return the folder after all three commands, and the sizes of the graphs of each."""
    folder, whole, graphs = tmp_path_factory.mktemp("rehearsed"), points.grid, []

    def noted(self, size):
        graphs.append(size)
        return capture(self, size)

    with pytest.MonkeyPatch.context() as patch:
        for runs in ("WARM_UP", "MIN_RUNS", "MAX_RUNS"):
            patch.setattr(measure, runs, 1)
        patch.setattr(points, "grid", lambda *arguments: whole(*arguments)[:64])
        patch.setattr(rig, "Device", Standin)
        patch.setattr(rig, "CUDA_STEP_TOKENS", 128)
        patch.setattr(rig, "CUDA_SEQUENCES", 12)
        patch.setattr(runner, "choose_paged", lambda *_: (in_place, ""))
        patch.setattr(DecodeGraphs, "_capture", noted)
        patch.setattr(torch.cuda, "memory_allocated", lambda _device: 0)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        options = ["--model", "tiny-llama", "--device", "cuda", "--dtype", "fp32"]
        assert main(["calibrate", "measure", *options, "--out", str(folder)]) == 0
        assert main(["calibrate", "fit", str(folder)]) == 0
        measured = len(graphs)
        found = replay_folder(folder, "cuda", folder, SHORT, lambda _text: None)
    return SimpleNamespace(
        folder=folder, measuring=graphs[:measured], replaying=graphs[measured:], found=found
    )


def test_all_points_are_measured_and_say_on_what(rehearsed):
    about = json.loads((rehearsed.folder / "samples.json").read_text())
    assert (about["gpu"], about["kind"], about["dtype"]) == ("h200", "cuda", "fp32")
    assert about["kernel"] == {"ragged": "loop+paged", "padded": "sdpa-padded+paged"}
    assert about["num_gpu_blocks_from"].startswith("measured: 0.9 of the memory")
    rows, bad = read_samples(rehearsed.folder / "samples.csv")
    assert (len(rows), bad) == (64, [])
    assert {row.status for row in rows} == {"ok"}
    assert {row.sm_clock_mhz for row in rows} == {1980.0}
    assert {row.peak_bytes for row in rows} == {100 << 20}


def test_graphs_are_captured_before_the_replays_and_not_in_them(rehearsed):
    assert len(set(rehearsed.measuring)) == len(rehearsed.measuring) > 1
    assert rehearsed.replaying == [16, 8, 4, 2, 1]


def test_both_sides_serve_the_same_with_the_profiles_of_what_ran(rehearsed):
    table = pd.read_parquet(rehearsed.folder / "requests.parquet")
    assert set(table["policy"]) == {"continuous", "static", "bucketserve"}
    assert set(table["side"]) == {"real", "simulated", "repeated", "longer"}
    engines = list(yaml.safe_load_all((rehearsed.folder / "engine.yaml").read_text()))
    clusters = {e["policy"][0]["name"]: e["cluster"] for e in engines if e}
    names = {
        name: [pool["profile"] for pool in cluster["pools"] or ()] or [cluster["profile"]]
        for name, cluster in clusters.items()
    }
    stems = {name: [path.rpartition("/")[2] for path in paths] for name, paths in names.items()}
    assert stems == {
        "continuous": ["profile_ragged_wall.yaml"],
        "static": ["profile_padded_wall.yaml"],
        "bucketserve": ["profile_padded_device.yaml", "profile_ragged_device.yaml"],
    }
    assert len(rehearsed.found) == 3 * 10


# -- what a CUDA graph may not do ------------------------------------------------------------------


class Meta(Standin):
    """A device whose tensors have no values: reading one, or mixing in the CPU's, is an error."""

    def __init__(self):
        super().__init__()
        self.torch_device = torch.device("meta")


class Seedless:
    """No generator: there is nothing to draw."""

    def __init__(self, _device):
        pass

    def manual_seed(self, _seed):
        return None


def no_values(q, keys, values, table, rows, lengths, spans, _page):
    """The paged kernel's contract, of which its own tests know nothing."""
    assert {x.device.type for x in (q, keys, values, table, rows, lengths, spans)} == {"meta"}
    assert (table.dtype, rows.dtype, lengths.dtype) == (torch.int32, torch.int64, torch.int64)
    assert all(x.is_contiguous() for x in (keys, values, table))
    return torch.empty_like(q)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "opt-13b", "qwen3-32b"])
@torch.inference_mode()
def test_a_step_reads_nothing_back_from_the_device(name, padded, monkeypatch):
    monkeypatch.setattr(torch, "Generator", Seedless)
    monkeypatch.setattr(runner, "choose_paged", lambda *_: (no_values, ""))
    monkeypatch.setattr(runner, "choose_packed", lambda *_: ("varlen", varlen(), ""))
    monkeypatch.setattr(DecodeGraphs, "_capture", lambda self, _size: self._decode(self._spare))
    spec = model_named(name).model_copy(update={"layers": 2})
    model = Transformer.random(spec, "bf16", torch.device("meta"))
    at = runner.Runner(model, Meta(), num_blocks=4096, padded=padded)
    at.warm_up(8)
    at._graphs = None
    steps = [
        ([Chunk(0, range(70)), Chunk(1, range(100))], []),
        ([Chunk(2, range(33)), Chunk(1, range(50), 100)], [0]),
        ([], [0, 1, 2]),
    ]
    for chunks, decodes in steps:
        batch = at._prepare(chunks, decodes)
        assert at._launch(batch).shape == (len(chunks) + len(decodes),)
        at._advance(batch)
