"""What a policy may ask about reusable prefixes: which tokens of a waiting request are cached."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from sim.types.request import Request
from sim.types.units import N


class Prospect(abc.ABC):
    """What the admissions of one plan would find, one after the other; asking changes nothing."""

    @abc.abstractmethod
    def cached(self, request: Request) -> N:
        """Return how many tokens of a waiting request are cached, if it is admitted next.

        Whole blocks, and never all tokens: the last one has to be computed.
        """

    @abc.abstractmethod
    def needs(self, request: Request, tokens: N) -> N:
        """Return the free blocks that `tokens` tokens of the request asked about last would take.

        They come after the cached ones: new blocks, and cached ones that nobody holds.
        """

    @abc.abstractmethod
    def admit(self, request: Request, tokens: N) -> N:
        """Admit the request asked about last with that many; return what it `needs`."""


class PrefixCache(abc.ABC):
    """Blocks of an instance that later requests may find again."""

    @abc.abstractmethod
    def prospect(self, growth: N, chunks: Sequence[tuple[Request, N]] = ()) -> Prospect:
        """Return what a plan would find.

        Args:
            growth: blocks that the decoding batch takes in the step; 0 if it takes no part.
            chunks: those of prompts under way, which come before any admission.
        """
