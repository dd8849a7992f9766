import json

import matplotlib.image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sim.report.figures import draw_comparison


def summary(label, n):
    half = 0.5 if n > 1 else None
    numbers = {"steady_request_throughput": 2.0, "request_goodput": 1.0, "offered_rate": 2.5}
    ends = {
        f"{key}_ci_{end}": None if half is None else value + sign * half
        for key, value in numbers.items()
        for end, sign in (("low", -1), ("high", 1))
    }
    return {"label": label, "n_replications": n, **numbers, **ends}


def comparison(folder, labels, n, finish):
    """Write the files of a comparison."""
    policies = {label: summary(label, n) for label in labels}
    content = {"baseline": labels[0], "policies": policies, "differences": {}}
    (folder / "comparison.json").write_text(json.dumps(content))
    for label in labels:
        (folder / label).mkdir()
        config = {
            "cluster": {"gpu": "h100", "count": 2, "model": "opt-13b"},
            "workload": {"source": "$\\frac{odd}$ <name>", "arrivals": None},
            "slo": {"ttft_ms": 500, "e2e_ms": None, "scale": 1},
        }
        (folder / label / "config.yaml").write_text(yaml.safe_dump(config))
        times = {"arrival_s": [0.0, 1.0], "first_token_s": [0.5, 1.1], "finish_s": finish}
        pq.write_table(pa.table(times), folder / label / "requests.parquet")


@pytest.mark.parametrize("n", [1, 5])
def test_the_picture_is_drawn_from_the_files_and_repeats(tmp_path, n):
    comparison(tmp_path, ["a", "b_c", "$x"], n, [3.0, 4.0])
    path = draw_comparison(tmp_path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 2 * height > 1000
    first = path.read_bytes()
    assert draw_comparison(tmp_path).read_bytes() == first


def test_requests_that_never_finished_can_be_drawn(tmp_path):
    comparison(tmp_path, ["a"], 2, [float("nan"), float("nan")])
    assert draw_comparison(tmp_path).is_file()
