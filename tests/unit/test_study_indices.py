import numpy as np
import pytest
from scipy.stats import qmc
from scipy.stats import sobol_indices as scipys

from sim.study.sweeps.indices import sobol_indices
from sim.study.sweeps.points import saltelli_design

NAMES = ("x1", "x2", "x3")


def ishigami(u):
    x = (u * 2 - 1) * np.pi
    return np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])


def sample(n):
    pair = qmc.Sobol(6, seed=0).random(n)
    return pair[:, :3], pair[:, 3:]


def test_the_ishigami_function_has_its_known_indices():
    found = sobol_indices(ishigami(saltelli_design(*sample(1024))), NAMES, 1024)
    first = [found.first[name].value for name in NAMES]
    total = [found.total[name].value for name in NAMES]
    assert first == pytest.approx([0.3139, 0.4424, 0.0], abs=0.02)
    assert total == pytest.approx([0.5576, 0.4424, 0.2437], abs=0.02)
    for name, known in zip(NAMES, [0.3139, 0.4424, 0.0], strict=True):
        assert found.first[name].low < known < found.first[name].high


def test_they_are_scipys():
    a, b = sample(256)
    y = ishigami(saltelli_design(a, b))
    blocks = y.reshape(5, 1, 256)
    theirs = scipys(func={"f_A": blocks[0], "f_B": blocks[1], "f_AB": blocks[2:]}, n=256)
    ours = sobol_indices(y, NAMES, 256)
    assert [ours.first[n].value for n in NAMES] == pytest.approx(theirs.first_order, abs=0.02)
    assert [ours.total[n].value for n in NAMES] == pytest.approx(theirs.total_order, abs=0.02)


def test_a_figure_that_does_not_vary_has_none():
    assert sobol_indices(np.full(40, 0.3), NAMES, 8) is None
