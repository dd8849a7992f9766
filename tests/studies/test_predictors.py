"""What a predictor with a given accuracy tells a policy."""

import pytest

from sim.core.predictors import ClassWithAccuracy, make_predictor

DRAWS = 10_000


@pytest.mark.parametrize(
    ("output_len", "neighbours"),
    [(1, {512}), (256, {512}), (257, {256, 1024}), (1024, {512, 2048}), (5000, {1024})],
)
def test_a_wrong_answer_is_the_edge_of_a_neighbouring_class(output_len, neighbours):
    predictor = ClassWithAccuracy(0.0, seed=1)
    assert {predictor.predict(output_len) for _ in range(200)} == neighbours


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.8, 1.0])
def test_accuracy_is_the_share_of_right_answers(accuracy):
    predictor = make_predictor("class", 7, accuracy, 0, 0.0)
    right = sum(predictor.predict(300) == 300 for _ in range(DRAWS))
    # Four standard deviations of a binomial share are at most 0.02.
    assert right / DRAWS == pytest.approx(accuracy, abs=0.02 if 0 < accuracy < 1 else 0)


def test_the_same_seed_predicts_the_same():
    one, other = ClassWithAccuracy(0.5, seed=3), ClassWithAccuracy(0.5, seed=3)
    assert [one.predict(300) for _ in range(50)] == [other.predict(300) for _ in range(50)]
