from sim.costs.simple import AffineCost


def test_hand_worked():
    cost = AffineCost(0.010, 0.001, 0.020, 0.002, 0.0001)
    piece = cost.decode(3)
    assert (piece.base_fs, piece.slope_fs) == (26 * 10**12, 10**11)
    assert piece is cost.decode(3)
    assert cost.step(2, 7, 7, 49, 0, 0) == 17 * 10**12
    assert cost.step(2, 7, 7, 49, 3, 40) == (17 + 26 + 4) * 10**12
    assert cost.step(0, 0, 0, 0, 3, 40) == 30 * 10**12


def test_free_prefill_takes_one_femtosecond():
    cost = AffineCost(decode_base_s=0.02)
    assert cost.step(1, 500, 500, 250_000, 0, 0) == 1
    assert cost.decode(9).base_fs == 2 * 10**13
    assert cost.decode(9).slope_fs == 0
    assert not cost.extrapolates(10**9, 10**9)


def test_zero_everything_still_moves_the_clock():
    assert AffineCost().decode(1).base_fs == 1
