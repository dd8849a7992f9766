"""The rule for the verdict, on invented intervals: every branch, and both sides of every bound.

`CLAIM` is 4 ± 0.5 and above 2: all of it is exact in binary, so that touching is touching.
"""

import math

import pytest

from sim.study.paper.verdict import JOINT, Claimed, Setting, judge
from sim.study.statistics.stats import Interval

CLAIM = Claimed(4.0, 2.0, "above", reading_error=0.5)
BELOW = Claimed(4.0, 6.0, "below", reading_error=0.5)
VALUE = Claimed(4.0, reading_error=0.5)
THRESHOLD = Claimed(None, 10.0, "below")
NAN = math.nan


def ours(low, high):
    return Interval((low + high) / 2, low, high, 5)


def setting(assumption, value, low, high):
    return Setting(assumption, value, (low + high) / 2, low, high)


def joint(*ends):
    return [setting(JOINT, at, low, high) for at, (low, high) in enumerate(ends)]


NEAR, DIRECTION, FAILS, OPEN = (3.75, 4.25), (2.5, 3.0), (1.0, 1.5), (1.0, 3.75)


class TestTolerance:
    def test_ten_percent_or_the_reading_error(self):
        assert Claimed(4.0).tolerance == pytest.approx(0.4)
        assert Claimed(4.0, reading_error=0.3).tolerance == pytest.approx(0.4)
        assert Claimed(4.0, reading_error=0.5).tolerance == 0.5
        assert Claimed(-4.0).tolerance == pytest.approx(0.4)

    def test_of_the_bound_without_a_value(self):
        assert THRESHOLD.tolerance == pytest.approx(1.0)
        assert Claimed(4.0, 100.0, "below").tolerance == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (3.75, 4.25, "near"),
        (3.0, 3.5, "near"),  # touches
        (3.0, 3.49, "far"),
        (4.5, 5.0, "near"),
        (4.51, 5.0, "far"),
        (3.5, 4.5, "near"),  # just precise
        (3.5, 4.51, "open"),
        (0.0, 3.5, "open"),
        (0.0, 3.49, "far"),  # wide, but far all the same
        (4.0, 4.0, "near"),
        (4.0, math.inf, "open"),
    ],
)
def test_closeness(low, high, found):
    assert CLAIM.closeness(Interval(4.0, low, high, 5)) == found


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (2.01, 2.5, "holds"),
        (2.01, 9.0, "holds"),  # however wide
        (2.0, 2.5, "fails"),  # touches the bound: no gain to speak of
        (1.5, 2.5, "fails"),  # just precise
        (1.5, 2.51, "open"),
        (0.0, 2.0, "fails"),  # wide, but no part beyond the bound
        (0.0, 2.01, "open"),
        (1.9, 3.5, "open"),
        (math.inf, math.inf, "holds"),
    ],
)
def test_direction_above(low, high, found):
    assert CLAIM.direction(Interval(2.0, low, high, 5)) == found


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (5.5, 5.99, "holds"),
        (-1.0, 5.99, "holds"),
        (5.5, 6.0, "fails"),
        (5.5, 6.5, "fails"),
        (5.49, 6.5, "open"),
        (6.0, 8.0, "fails"),
        (5.99, 8.0, "open"),
        (4.5, 6.1, "open"),
    ],
)
def test_direction_below(low, high, found):
    assert BELOW.direction(Interval(6.0, low, high, 5)) == found


def test_near_the_value_and_on_the_bound_is_open():
    close = Claimed(4.0, 3.625, "above", reading_error=0.5)
    assert close.direction(ours(3.5625, 3.75)) == "open"
    assert close.direction(ours(3.25, 3.5625)) == "fails"  # near, but on the wrong side
    assert judge(close, ours(3.5625, 3.75), []).name == "undecidable"
    assert judge(close, ours(3.25, 3.5625), []).name == "not reproduced"


@pytest.mark.parametrize(
    ("ends", "found"), [(NEAR, "holds"), (DIRECTION, "fails"), ((3.0, 5.0), "open")]
)
def test_without_a_bound_the_value_must_hold(ends, found):
    assert VALUE.direction(ours(*ends)) == found


@pytest.mark.parametrize(
    ("low", "high", "direction", "closeness"),
    [
        (8.0, 9.99, "holds", "near"),
        (-9.0, 9.99, "holds", "near"),
        (9.9, 10.0, "open", "open"),
        (9.9, 10.1, "open", "open"),
        (10.0, 15.0, "fails", "open"),
    ],
)
def test_threshold(low, high, direction, closeness):
    assert THRESHOLD.direction(ours(low, high)) == direction
    assert THRESHOLD.closeness(ours(low, high)) == closeness


def test_threshold_above():
    least = Claimed(None, 10.0, "above")
    assert [least.direction(ours(*e)) for e in [(10.01, 11), (10, 11), (5, 10)]] == [
        "holds",
        "open",
        "fails",
    ]


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("claim", [CLAIM, VALUE, THRESHOLD])
def test_what_is_undefined_is_open(claim, at):
    ends = [4.0, 4.0, 4.0]
    ends[at] = NAN
    undefined = Interval(*ends, 1)
    assert (claim.direction(undefined), claim.closeness(undefined)) == ("open", "open")
    assert judge(claim, undefined, []).name == "undecidable"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "a value, a bound or both"),
        ((4.0, 2.0), "a bound has a side"),
        ((4.0, None, "above"), "a bound has a side"),
        ((4.0, 4.0, "above"), "the value 4 is not above 4"),
        ((4.0, 4.0, "below"), "the value 4 is not below 4"),
        ((4.0, None, None, -0.1), "reading error"),
        ((4.0, None, None, math.inf), "reading error"),
        ((4.0, None, None, NAN), "reading error"),
    ],
)
def test_claims_that_say_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Claimed(*arguments)


class TestThePaperSetAlone:
    @pytest.mark.parametrize(
        ("claim", "ends", "name"),
        [
            (CLAIM, NEAR, "reproduced"),
            (CLAIM, DIRECTION, "direction only"),
            (CLAIM, (5.0, 6.0), "direction only"),  # beyond the value
            (CLAIM, FAILS, "not reproduced"),
            (CLAIM, OPEN, "undecidable"),
            (CLAIM, (2.5, 5.0), "undecidable"),  # the direction holds, the value is open
            (VALUE, NEAR, "reproduced"),
            (VALUE, DIRECTION, "not reproduced"),
            (THRESHOLD, (8.0, 9.0), "reproduced"),
            (THRESHOLD, (9.5, 10.5), "undecidable"),
            (THRESHOLD, (10.5, 11.0), "not reproduced"),
        ],
    )
    def test_names(self, claim, ends, name):
        verdict = judge(claim, ours(*ends), [])
        assert verdict.name == name
        assert "no assumption was changed" in verdict.reason
        assert verdict.decisive is None

    def test_reasons_quote_both_sides(self):
        reason = judge(CLAIM, ours(*DIRECTION), []).reason
        assert "2.75 [2.5, 3]" in reason
        assert "lies on the claimed side but not near the paper's 4 ±0.5, above 2" in reason
        assert "below 10" in judge(THRESHOLD, ours(8, 9), []).reason
        assert "undefined" in judge(CLAIM, Interval(NAN, NAN, NAN, 1), []).reason

    def test_backward_intervals_are_refused(self):
        with pytest.raises(ValueError, match="ends before it begins"):
            judge(CLAIM, Interval(4.0, 4.5, 3.5, 5), [])
        with pytest.raises(ValueError, match="ends before it begins"):
            judge(CLAIM, ours(*NEAR), [Setting("mix", 0.5, 4.0, 4.5, 3.5)])
        assert judge(CLAIM, ours(4.0, 4.0), []).name == "reproduced"


class TestOverAssumptions:
    def test_two_thirds_are_enough(self):
        verdict = judge(CLAIM, ours(*NEAR), joint(NEAR, DIRECTION, FAILS))
        assert verdict.name == "reproduced"
        assert (verdict.agree, verdict.against, verdict.unclear, verdict.near) == (2, 1, 0, 1)
        assert "2 of 3 settings agree, 1 say the opposite, 0 are unclear, 1 are near" in (
            verdict.reason
        )

    def test_fewer_are_not(self):
        verdict = judge(CLAIM, ours(*NEAR), joint(NEAR, NEAR, NEAR, FAILS, FAILS))
        assert verdict.name == "undecidable"
        assert "3 of 5 settings agree, fewer than two thirds" in verdict.reason

    @pytest.mark.parametrize("n", [300, 301, 302])
    def test_the_share_is_exact(self, n):
        enough = math.ceil(2 * n / 3)
        for agreeing, name in [(enough, "direction only"), (enough - 1, "undecidable")]:
            settings = joint(*[NEAR] * agreeing, *[FAILS] * (n - agreeing))
            assert judge(CLAIM, ours(*DIRECTION), settings).name == name

    def test_what_does_not_hold_must_agree_as_well(self):
        assert judge(CLAIM, ours(*FAILS), joint(FAILS, FAILS, NEAR)).name == "not reproduced"
        assert judge(CLAIM, ours(*FAILS), joint(FAILS, DIRECTION, NEAR)).name == "undecidable"

    def test_what_is_unclear_agrees_with_nobody(self):
        verdict = judge(CLAIM, ours(*NEAR), joint(NEAR, OPEN))
        assert (verdict.agree, verdict.against, verdict.unclear) == (1, 0, 1)
        assert "two thirds, 0 say the opposite, 1 are unclear" in verdict.reason
        assert verdict.name == "undecidable"
        nan = Setting(JOINT, 1, NAN, NAN, NAN)
        assert judge(CLAIM, ours(*FAILS), [nan]).unclear == 1

    def test_an_open_paper_set_is_undecidable_whatever_the_settings_say(self):
        verdict = judge(CLAIM, ours(*OPEN), joint(OPEN, NEAR, NEAR, FAILS))
        assert verdict.name == "undecidable"
        assert (verdict.agree, verdict.against, verdict.unclear, verdict.near) == (0, 0, 1, 2)
        assert "2 of 4 settings are near" in verdict.reason
        wide = judge(CLAIM, ours(2.5, 5.0), joint(NEAR, NEAR))
        assert (wide.name, wide.agree) == ("undecidable", 2)

    def test_how_many_are_near_changes_nothing(self):
        verdict = judge(CLAIM, ours(*NEAR), joint(DIRECTION, DIRECTION, DIRECTION))
        assert (verdict.name, verdict.near) == ("reproduced", 0)

    def test_joint_settings_count_where_there_are_some(self):
        single = [setting("mix", at, *FAILS) for at in range(9)]
        verdict = judge(CLAIM, ours(*NEAR), [*single, *joint(NEAR)])
        assert (verdict.name, verdict.agree, verdict.against) == ("reproduced", 1, 0)
        assert judge(CLAIM, ours(*NEAR), single).name == "undecidable"

    def test_the_span_is_over_all_means(self):
        settings = [setting("mix", 1, 0.5, 1.5), *joint((8.0, 9.0), (5.0, 6.0))]
        verdict = judge(CLAIM, ours(*NEAR), [*settings, Setting("budget", 2, NAN, NAN, NAN)])
        assert (verdict.lowest, verdict.highest) == (1.0, 8.5)
        alone = judge(CLAIM, ours(*NEAR), [])
        assert (alone.lowest, alone.highest) == (4.0, 4.0)
        nothing = judge(CLAIM, Interval(NAN, NAN, NAN, 1), [])
        assert math.isnan(nothing.lowest)
        assert math.isnan(nothing.highest)


def decisive(settings, ends=NEAR, claim=CLAIM):
    found = judge(claim, ours(*ends), settings).decisive
    return None if found is None else (found.assumption, found.value, found.crosses)


class TestDecisive:
    def test_most_of_whose_values_cross(self):
        settings = [
            setting("mix", 1, 0.0, 0.5),  # farther, but one of two
            setting("mix", 2, *NEAR),
            setting("engine", "ragged", 1.5, 1.75),
        ]
        assert decisive(settings) == ("engine", "ragged", "bound")
        assert judge(CLAIM, ours(*NEAR), settings).decisive.share == 1.0
        assert judge(CLAIM, ours(*NEAR), settings[:2]).decisive.share == 0.5

    def test_then_the_farthest_then_the_first(self):
        far, less = setting("far", 1, 0.0, 0.5), setting("less", 1, 1.0, 1.5)
        assert decisive([far, less]) == ("far", 1, "bound")
        assert decisive([less, far]) == ("far", 1, "bound")
        same = setting("same", 1, 1.0, 1.5)
        assert decisive([less, same]) == ("less", 1, "bound")
        assert decisive([same, less]) == ("same", 1, "bound")

    def test_of_its_values_the_farthest_that_crosses(self):
        settings = [
            setting("mix", 1, 1.0, 1.5),
            setting("mix", 2, 0.5, 1.0),
            setting("mix", 3, 20.0, 21.0),  # farther still, on the claimed side
        ]
        assert decisive(settings) == ("mix", 2, "bound")

    def test_it_can_bring_the_claim_back(self):
        settings = [setting("mix", 1, 0.0, 0.5), setting("order", "sjf", *DIRECTION)]
        assert decisive(settings, FAILS) == ("order", "sjf", "bound")

    def test_the_value_where_nothing_crosses_the_bound(self):
        settings = [setting("mix", 1, 20.0, 21.0), setting("budget", 2, *NEAR)]
        assert decisive(settings, DIRECTION) == ("budget", 2, "value")
        assert decisive([setting("mix", 1, *DIRECTION)]) == ("mix", 1, "value")

    def test_the_bound_goes_before_the_value(self):
        settings = [setting("mix", 1, *DIRECTION), setting("budget", 2, *FAILS)]
        settings += [setting("budget", 3, *NEAR)]
        assert decisive(settings) == ("budget", 2, "bound")

    def test_what_is_unclear_crosses_nothing(self):
        settings = [setting("noise", 1, 0.0, 5.0), setting("mix", 1, 3.5, 4.0)]
        assert decisive(settings) == ("noise", 1, "nothing")

    def test_the_farthest_where_nothing_crosses(self):
        settings = [setting("mix", 1, 3.75, 4.0), setting("mix", 2, 3.75, 4.5)]
        settings += [setting("budget", 3, 4.25, 4.5)]
        found = judge(CLAIM, ours(*NEAR), settings).decisive
        assert (found.assumption, found.value, found.crosses) == ("budget", 3, "nothing")
        assert (found.mean, found.share) == (4.375, 0.0)
        assert "farthest, across nothing" in str(found)

    def test_an_open_paper_set_is_moved_not_crossed(self):
        settings = [setting("mix", 1, *NEAR), setting("budget", 2, *FAILS)]
        assert decisive(settings, OPEN) == ("mix", 1, "nothing")

    def test_joint_and_undefined_settings_name_nobody(self):
        assert decisive(joint(FAILS, FAILS)) is None
        assert decisive([Setting("mix", 1, NAN, NAN, NAN)]) is None

    def test_undefined_under_the_paper_set(self):
        found = judge(CLAIM, Interval(NAN, NAN, NAN, 1), [setting("mix", 1, *FAILS)]).decisive
        assert (found.assumption, found.crosses) == ("mix", "nothing")

    def test_one_at_a_time_is_sought_beside_joint(self):
        settings = [*joint(NEAR, NEAR), setting("engine", "ragged", *FAILS)]
        verdict = judge(CLAIM, ours(*NEAR), settings)
        assert verdict.name == "reproduced"
        assert verdict.decisive.assumption == "engine"
        assert verdict.reason.endswith("engine = ragged moves ours to 1.25, across the bound")
        value = judge(CLAIM, ours(*NEAR), [setting("mix", 0.3, *DIRECTION)]).reason
        assert value.endswith("mix = 0.3 moves ours to 2.75, into or out of reach of the value")
