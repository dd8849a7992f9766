"""What requests share, from the columns of a trace."""

from __future__ import annotations

import numpy as np
import pytest

from sim.core.prefixes import shared_prefixes
from sim.core.simulation import Simulation
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace


def trace(prompts, **columns):
    ones = np.ones(len(prompts), np.int64)
    return Trace(np.array(prompts), ones, np.arange(len(prompts)) * 1.0, **columns)


def groups(prompts, group, length):
    return shared_prefixes(
        trace(prompts, prefix_group=np.array(group), prefix_len=np.array(length))
    )


def hashes(prompts, lists, size=10):
    return shared_prefixes(trace(prompts, block_hashes=lists, hash_block_tokens=size))


def test_nothing_is_shared():
    assert shared_prefixes(trace([5, 5])) is None
    assert groups([5, 5], [-1, -1], [0, 0]) is None
    assert groups([5, 5], [3, 4], [5, 5]) is None  # alone in their groups
    assert hashes([15, 15], ((1, 2), (3, 4))) is None
    assert hashes([15, 15], ((), ())) is None


def test_a_group_is_one_node_of_which_each_has_its_length():
    assert groups([50, 50, 50], [9, 9, 9], [30, 20, 30]) == [((0, 30),), ((0, 20),), ((0, 30),)]
    assert groups([50, 50, 9], [9, 9, 9], [30, 30, 30]) == [((0, 30),), ((0, 30),), ((0, 9),)]
    # What only one has, nobody finds again.
    assert groups([50, 50], [9, 9], [30, 20]) == [((0, 20),), ((0, 20),)]


def test_a_length_of_0_in_a_group_is_all_that_the_others_share():
    assert groups([50, 50, 50], [2, 2, -1], [0, 20, 0]) == [((0, 20),), ((0, 20),), ()]
    assert groups([15, 50], [2, 2], [0, 20]) == [((0, 15),), ((0, 15),)]


def test_equal_ids_share_only_behind_equal_ids():
    assert hashes([30, 30, 30], ((1, 2, 3), (1, 2, 4), (5, 2, 3))) == [((0, 20),), ((0, 20),), ()]


def test_blocks_that_go_together_are_one_node():
    lists = ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2), (1, 9))
    assert hashes([40, 40, 20, 20], lists) == [
        ((0, 10), (1, 20), (2, 40)),
        ((0, 10), (1, 20), (2, 40)),
        ((0, 10), (1, 20)),
        ((0, 10),),
    ]


def test_the_last_block_ends_with_the_prompt():
    """Mooncake's last id stands for less than a block; a prompt may have been cut as well."""
    assert hashes([15, 15], ((1, 2), (1, 2))) == [((0, 15),), ((0, 15),)]
    assert hashes([30, 5], ((1, 2, 3), (1, 2, 3))) == [((0, 30),), ((0, 5),)]


def test_lengths_are_needed():
    with pytest.raises(ValueError, match="no shared lengths"):
        shared_prefixes(trace([5, 5], prefix_group=np.array([0, 0])))


@pytest.mark.parametrize(("size", "cached"), [(4, 20), (16, 16), (32, 0)])
def test_hashed_blocks_of_another_size_than_the_engine_s(size, cached):
    """Two ids of 10 tokens are 20 shared tokens: whole blocks of the engine's size of them."""
    import policies

    cls = policies.load("continuous")
    shared = trace([40, 40], block_hashes=((1, 2), (1, 2)), hash_block_tokens=10)
    specs = [InstanceSpec(AffineCost(0.01, decode_base_s=0.02), 100, size)]
    sim = Simulation(shared, cls(cls.Config()), specs, Settings(enable_prefix_caching=True))
    assert sim.run().requests["cached_tokens"].tolist() == [0, cached]


def test_an_executor_computes_every_prompt():
    with pytest.raises(ValueError, match="no prefix caching"):
        Settings(fuse_steps=False, executor=object(), enable_prefix_caching=True)
