"""What a function given to the store may do: the rows of all nouns on one connection."""

from __future__ import annotations

from nanopod.store.activations import ActivationRows
from nanopod.store.chain import ChainRows
from nanopod.store.keys import KeyRows
from nanopod.store.nodes import NodeRows
from nanopod.store.usage import UsageRows


class Transaction(ActivationRows, ChainRows, NodeRows, KeyRows, UsageRows):
    """One transaction. It ends with the function it was given to; never keep it."""
