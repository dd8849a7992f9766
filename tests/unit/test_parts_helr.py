"""UELLM's deployer: hand-worked layouts on 2 and 4 GPUs, and brute force on small random cases."""

import random
from itertools import combinations, permutations

import pytest

from policies.parts.helr import (
    Gpu,
    Layers,
    Layout,
    Stage,
    Topology,
    best_layouts,
    choose,
    uniform,
)


def layers(count: int, bytes_each: float = 1.0) -> Layers:
    return Layers([bytes_each] * count, [1.0] * count)


def stages(layout: Layout) -> list[tuple[int, int, int]]:
    return [(s.gpu, s.first, s.end) for s in layout.stages]


def all_three(found: dict[int, Layout]) -> dict[str, list[tuple[int, int, int]]]:
    return {name: stages(choose(found, name)) for name in ("he", "lr", "helr")}


# -- by hand --------------------------------------------------------------------------------------


def test_two_gpus_the_model_fits_one():
    # 4 layers of 10 ms. One GPU: 40 ms. Two: 40 + 1 ms for the transfer: all three take one GPU.
    found = best_layouts(layers(4), uniform(2, 4, 0.010, 0.001))
    assert [(n, layout.latency_s) for n, layout in found.items()] == [
        (1, pytest.approx(0.040)),
        (2, pytest.approx(0.041)),
    ]
    one = [(0, 0, 4)]
    assert all_three(found) == {"he": one, "lr": one, "helr": one}


def test_two_gpus_the_model_needs_both():
    # Three layers fit a GPU, there are four: 3 + 1, 2 + 2 or 1 + 3, 41 ms each.
    found = best_layouts(layers(4), uniform(2, 3, 0.010, 0.001))
    assert list(found) == [2]
    assert found[2].latency_s == pytest.approx(0.041)
    assert stages(found[2]) in [
        [(0, 0, 3), (1, 3, 4)],
        [(0, 0, 2), (1, 2, 4)],
        [(0, 0, 1), (1, 1, 4)],
    ]


def test_two_gpus_a_large_slow_one_and_a_small_fast_one():
    # GPU 0: 4 layers, 30 ms each. GPU 1: 2 layers, 10 ms each. Transfer 5 ms.
    #   GPU 0 alone                                   4 x 30                = 120 ms
    #   two layers on each, either order              2 x 30 + 5 + 2 x 10   =  85 ms
    # HE takes one GPU, LR both; 120 > 1.05 x 85, so HELR takes both. With 40 ms for a GPU:
    # 120 + 40 = 160 against 85 + 80 = 165: one.
    topology = Topology([Gpu(4, 0.030), Gpu(2, 0.010)], [[0.0, 0.005], [0.005, 0.0]])
    found = best_layouts(layers(4), topology)
    assert [found[1].latency_s, found[2].latency_s] == pytest.approx([0.120, 0.085])
    assert stages(found[1]) == [(0, 0, 4)]
    assert stages(found[2]) in [[(0, 0, 2), (1, 2, 4)], [(1, 0, 2), (0, 2, 4)]]
    assert choose(found, "he") == found[1]
    assert choose(found, "lr") == found[2]
    assert choose(found, "helr") == found[2]
    assert choose(found, "helr", slack=0.5) == found[1]  # 120 <= 1.5 x 85
    assert choose(found, "helr", mu_s=0.040) == found[1]
    assert choose(found, "helr", mu_s=0.030) == found[2]  # 150 against 145


def four() -> Topology:
    """GPUs 0, 1 on one NVLink pair and 2, 3 on another; PCIe between the pairs. GPU 3 is fast."""
    near, far = 0.001, 0.010
    times = [
        [0.0, near, far, far],
        [near, 0.0, far, far],
        [far, far, 0.0, near],
        [far, far, near, 0.0],
    ]
    return Topology([Gpu(3, 0.010), Gpu(3, 0.010), Gpu(3, 0.010), Gpu(2, 0.006)], times)


def test_four_gpus():
    # 6 layers; three fit GPUs 0, 1, 2 and two fit GPU 3.
    #   two GPUs: three layers each on a pair: 0 and 1 (or 1, 0), 60 + 1             =  61 ms
    #             (across the pairs 60 + 10 = 70; with GPU 3 only 3 + 2 = 5 layers fit)
    #   three:    GPU 3 must hold two to win anything: 4 x 10 + 2 x 6 = 52, and one change
    #             of pair, 10, and one inside a pair, 1                              =  63 ms
    #             (0, 1, 2: 60 + 1 + 10 = 71; 0, 2, 3: 52 + 10 + 1; 0, 1, 3: 52 + 1 + 10)
    #   four:     52 + 1 + 10 + 1                                                    =  64 ms
    found = best_layouts(layers(6), four())
    assert [(n, round(layout.latency_s, 9)) for n, layout in found.items()] == [
        (2, 0.061),
        (3, 0.063),
        (4, 0.064),
    ]
    assert stages(found[2]) == [(0, 0, 3), (1, 3, 6)]
    assert {name: len(way) for name, way in all_three(found).items()} == {
        "he": 2,
        "lr": 2,
        "helr": 2,
    }


def test_four_gpus_where_latency_wants_more():
    # As above with 20 ms a layer on GPUs 0-2: two GPUs 121 ms; three: 4 x 20 + 2 x 6 + 11 = 103.
    slow = four()
    topology = Topology([*[Gpu(3, 0.020)] * 3, slow.gpus[3]], slow.transfer_s)
    found = best_layouts(layers(6), topology)
    assert [round(layout.latency_s, 9) for layout in found.values()] == [0.121, 0.103, 0.104]
    assert len(choose(found, "he").stages) == 2
    assert len(choose(found, "lr").stages) == 3
    assert len(choose(found, "helr").stages) == 3
    assert len(choose(found, "helr", slack=0.2).stages) == 2  # 121 <= 1.2 x 103


def test_nothing_fits():
    assert best_layouts(layers(6), uniform(2, 2, 0.01, 0.0)) == {}


def test_a_large_layer_goes_where_it_fits():
    found = best_layouts(
        Layers([1, 5, 1], [1, 2, 1]),
        Topology([Gpu(2, 1.0), Gpu(6, 3.0)], [[0.0, 0.25], [0.5, 0.0]]),
    )
    # GPU 1 must hold layer 1. All on GPU 1 needs 7 bytes. [0 | 1 2]: 1 + 0.25 + 3 * 3 = 10.25;
    # [0 1 | 2] on (1, 0): 3 * 3 + 0.5 + 1 = 10.5; no GPU is used twice.
    assert list(found) == [2]
    assert found[2] == Layout([Stage(0, 0, 1), Stage(1, 1, 3)], 10.25)


def test_sixteen_equal_gpus_are_fast():
    found = best_layouts(layers(40), uniform(16, 10, 0.001, 0.0001))
    assert sorted(found) == list(range(4, 17))
    assert [round(found[n].latency_s, 9) for n in (4, 16)] == [0.0403, 0.0415]


# -- brute force ----------------------------------------------------------------------------------


def brute_force(model: Layers, topology: Topology) -> dict[int, float]:
    """Least latency by number of GPUs, over all orders of GPUs and all ways to cut the layers."""
    count, best = len(model.bytes), {}
    for n in range(1, min(count, len(topology.gpus)) + 1):
        for order in permutations(range(len(topology.gpus)), n):
            for cuts in combinations(range(1, count), n - 1):
                edges = [0, *cuts, count]
                total = 0.0
                for at, g in enumerate(order):
                    part = slice(edges[at], edges[at + 1])
                    if sum(model.bytes[part]) > topology.gpus[g].memory_bytes:
                        break
                    total += topology.gpus[g].layer_s * sum(model.work[part])
                    total += topology.transfer_s[order[at - 1]][g] if at else 0.0
                else:
                    best[n] = min(best.get(n, total), total)
    return best


def check_layout(layout: Layout, model: Layers, topology: Topology) -> None:
    """Every layer once, every GPU once, memory kept, the latency is that of the stages."""
    held = [layer for s in layout.stages for layer in range(s.first, s.end)]
    assert held == list(range(len(model.bytes)))
    gpus = [s.gpu for s in layout.stages]
    assert len(set(gpus)) == len(gpus)
    total = 0.0
    for at, s in enumerate(layout.stages):
        assert sum(model.bytes[s.first : s.end]) <= topology.gpus[s.gpu].memory_bytes
        total += topology.gpus[s.gpu].layer_s * sum(model.work[s.first : s.end])
        total += topology.transfer_s[gpus[at - 1]][s.gpu] if at else 0.0
    assert layout.latency_s == total


@pytest.mark.parametrize("seed", range(200))
def test_equals_brute_force(seed: int):
    rng = random.Random(seed)
    gpus, count = rng.randint(1, 4), rng.randint(1, 6)
    alike = rng.random() < 0.4  # equal GPUs, to test that symmetry loses nothing
    kinds = [Gpu(rng.randint(2, 12), rng.randint(1, 5)) for _ in range(1 if alike else gpus)]
    links = [rng.randint(0, 6) for _ in range(2)]
    times = [[rng.choice(links) for _ in range(gpus)] for _ in range(gpus)]
    if alike and rng.random() < 0.5:
        times = [[links[a // 2 == b // 2] for b in range(gpus)] for a in range(gpus)]
    topology = Topology([rng.choice(kinds) for _ in range(gpus)], times)
    model = Layers(
        [rng.randint(1, 4) for _ in range(count)], [rng.randint(1, 3) for _ in range(count)]
    )
    found = best_layouts(model, topology)
    assert {n: layout.latency_s for n, layout in found.items()} == brute_force(model, topology)
    for n, layout in found.items():
        assert len(layout.stages) == n
        check_layout(layout, model, topology)
