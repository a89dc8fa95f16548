"""Everything a hardware requirement is written with: the columns, the names of accelerators, and `Query`."""

from __future__ import annotations

from nanopod.client.columns import *  # noqa: F403
from nanopod.client.gpus import *  # noqa: F403
from nanopod.client.query import Column as Column
from nanopod.client.query import Query as Query
from nanopod.client.query import parse_query as parse_query
