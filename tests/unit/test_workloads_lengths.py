"""Length distributions against their formulas and against the real traces."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest, spearmanr

from workloads.fit_lengths import LONGBENCH_KINDS, fit_correlation, fit_knots
from workloads.lengths.pair import LengthPair, Mixture, shares
from workloads.lengths.parametric import Fixed, Geometric, Lognormal, Uniform
from workloads.lengths.tables import FOLDER, Knots, TableFile, table_names, table_source
from workloads.read import read_trace

DATA = Path(__file__).parents[3] / "shared" / "data" / "workloads"
DRAWS = 100_000
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")

REAL = {
    "alpaca": "alpaca_5k",
    "sharegpt": "sharegpt_val_10k",
    "arxiv": "arxiv_summarization",
    "longbench": "longbench",
    **{f"longbench-{kind}": "longbench" for kind in LONGBENCH_KINDS},
}


def real_lengths(name):
    trace = read_trace(DATA / f"{REAL[name]}.csv.gz")
    kind = name.partition("-")[2]
    if not kind:
        return trace.input_len, trace.output_len
    tasks = np.array(trace.tasks)[trace.task]
    chosen = np.isin(tasks, LONGBENCH_KINDS[kind])
    return trace.input_len[chosen], trace.output_len[chosen]


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_fitted_source_has_the_lengths_of_its_trace(name, record_property):
    drawn = table_source(name).draw(np.random.default_rng(0), DRAWS)
    real = real_lengths(name)
    distances = [ks_2samp(a, b, method="asymp").statistic for a, b in zip(drawn, real, strict=True)]
    ranks = [spearmanr(*pair).statistic for pair in (drawn, real)]
    figure = f"KS {max(distances):.4f}, rank correlation {ranks[0]:.3f}, real {ranks[1]:.3f}"
    record_property("evidence", f"lengths of {name} against the real trace: {figure}")
    for side in (0, 1):
        # kstest's `exact` method has nothing to say on ties; only the distance is used.
        assert ks_2samp(drawn[side], real[side], method="asymp").statistic <= 0.015
        assert drawn[side].mean() == pytest.approx(real[side].mean(), rel=0.03)
        assert drawn[side].min() >= real[side].min()
        assert drawn[side].max() <= real[side].max()
    assert spearmanr(*drawn).statistic == pytest.approx(spearmanr(*real).statistic, abs=0.03)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_tables_are_compact(file):
    import yaml

    content = TableFile.model_validate(yaml.safe_load(file.read_text()))
    assert content.source
    assert content.licence
    for table in content.tables:
        for side in (table.input, table.output):
            assert len(side.tokens) <= 128
            # Fewer than 64 knots only where the trace has fewer different lengths.
            assert len(side.tokens) >= 64 or table.n < 1_000 or file.stem == "longbench"


def test_every_kind_of_longbench_is_a_source():
    names = table_names()
    assert {f"longbench-{kind}" for kind in [*LONGBENCH_KINDS, "en", "zh"]} <= set(names)
    assert table_source("longbench-poems") is None
    assert table_source("nothing") is None


def test_knots_spread_mass_over_whole_numbers():
    """Half the mass on 3, the other half evenly on 4, 5, 6."""
    knots = Knots(tokens=(2, 3, 6), cdf=(0.0, 0.5, 1.0))
    u = (np.arange(600) + 0.5) / 600
    values, counts = np.unique(knots.quantile(u), return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    assert counts.tolist() == [300, 100, 100, 100]
    assert knots.quantile(np.array([0.0, 1.0])).tolist() == [3, 6]


def test_fit_finds_atoms_and_tails():
    lengths = np.concatenate([np.full(5_000, 7), np.arange(100, 5_100)])
    knots = fit_knots(lengths, 12)
    values = knots.quantile((np.arange(10_000) + 0.5) / 10_000)
    assert ks_2samp(values, lengths, method="asymp").statistic < 0.001
    assert (values == 7).sum() == 5_000


def test_fit_of_the_correlation_sees_the_ties():
    rng = np.random.default_rng(0)
    knots = fit_knots(rng.geometric(0.5, 5_000), 64)
    rho = fit_correlation(knots, knots, 0.5)
    drawn = LengthPair(knots, knots, rho).draw(rng, 50_000)
    assert spearmanr(*drawn).statistic == pytest.approx(0.5, abs=0.01)
    assert rho > 0.53  # of continuous lengths it would be 2 sin(pi/6 * 0.5) = 0.518


def test_parametric_against_formulas():
    u = (np.arange(100_000) + 0.5) / 100_000
    assert set(Fixed(tokens=9).quantile(u)) == {9}
    uniform = Uniform(low=3, high=6).quantile(u)
    assert np.bincount(uniform).tolist() == [0, 0, 0, 25_000, 25_000, 25_000, 25_000]
    geometric = Geometric(mean=50).quantile(u)
    assert geometric.mean() == pytest.approx(50, rel=1e-3)
    # P(X > 100) = (1 - 1/50)^100
    assert (geometric > 100).mean() == pytest.approx(0.98**100, abs=1e-4)
    assert set(Geometric(mean=1).quantile(u)) == {1}
    lognormal = Lognormal(mean=400, cv=0.5).quantile(u)
    assert lognormal.mean() == pytest.approx(400, rel=1e-3)
    assert lognormal.std() == pytest.approx(200, rel=0.01)
    assert set(Lognormal(mean=400, cv=0).quantile(u)) == {400}
    assert Lognormal(mean=1, cv=1).quantile(u).min() == 1
    assert Lognormal(mean=2**30, cv=100).quantile(u).max() == 2**31 - 1


def test_pair_is_a_gaussian_copula():
    rng = np.random.default_rng(1)
    wide = Uniform(low=1, high=1_000_000)
    drawn = LengthPair(wide, wide, -0.6).draw(rng, DRAWS)
    for side in drawn:
        assert kstest(side, "uniform", args=(1, 1_000_000)).pvalue > 0.001
    expected = 6 / np.pi * np.arcsin(-0.6 / 2)
    assert spearmanr(*drawn).statistic == pytest.approx(expected, abs=0.01)


def test_mixture_follows_weights_and_labels():
    parts = [LengthPair(Fixed(tokens=i), Fixed(tokens=10 * i)) for i in (1, 2, 3)]
    mixture = Mixture([part.draw for part in parts], [1, 2, 1])
    label, input_len, output_len = mixture.draw_labelled(np.random.default_rng(0), DRAWS)
    np.testing.assert_array_equal(input_len, label + 1)
    np.testing.assert_array_equal(output_len, 10 * (label + 1))
    np.testing.assert_allclose(np.bincount(label) / DRAWS, [0.25, 0.5, 0.25], atol=0.006)
    assert set(shares(np.random.default_rng(0), 100, [5.0])) == {0}


def test_more_requests_begin_with_the_same_ones():
    pair = table_source("sharegpt")
    few, many = (pair.draw(np.random.default_rng(3), n)[0] for n in (10, 1_000))
    np.testing.assert_array_equal(few, many[:10])
