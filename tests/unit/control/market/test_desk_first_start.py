"""What a cluster begins with, also one whose database comes from an earlier version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nanopod.ledger import chart
from nanopod.ledger.transfers import AMOUNT_MAX
from nanopod.model.capacity import Capacity, Node, Sku
from nanopod.model.chain import Workspace
from nanopod.model.ids import make_key
from nanopod.server.first_start import prepare
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction

T = TypeVar("T")
KEY = make_key(bytes(range(40)))[1]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[[Callable[[Transaction], Any]], Any]]:
    loop = asyncio.new_event_loop()

    async def make() -> SqliteStore:
        return SqliteStore(tmp_path / "server.db", block_s=30)

    store = loop.run_until_complete(make())
    yield lambda fn: loop.run_until_complete(store.write(fn))
    loop.run_until_complete(store.close())
    loop.close()


def start(write: Transaction) -> tuple[str, int]:
    return prepare(write, b"p" * 32, KEY, 1000.0, 2000.0)


def test_a_fresh_cluster(write: Callable[[Callable[[Transaction], Any]], Any]) -> None:
    write(start)
    accounts = {one.name: one for one in write(lambda t: t.accounts())}
    assert {name: one.kind for name, one in accounts.items()} == {
        "nanopod": "platform", "local": "user", "local-node": "provider",
    }  # fmt: skip
    spaces = {one.name: one for one in write(lambda t: t.workspaces_all())}
    assert spaces["default"].account_id == accounts["local"].account_id
    (provider,) = write(lambda t: t.providers())
    assert (provider.name, provider.account_id) == ("local-node", accounts["local-node"].account_id)
    kinds = {one.name: (one.kind, one.account_id) for one in write(lambda t: t.capacities())}
    assert kinds == {
        "default": ("market", accounts["local"].account_id),
        "local-node": ("originating", accounts["local-node"].account_id),
    }
    line = write(lambda t: t.ledger_account(chart.credit_line(spaces["default"].workspace_id)))
    assert line.available == AMOUNT_MAX
    image = write(lambda t: t.image_named(spaces["default"].workspace_id, "host"))
    assert (image.upload_status, image.is_public, image.sha256) == ("completed", True, "")
    assert write(lambda t: t.setting("block_s")) == "30"


def test_starting_again_changes_nothing_but_the_count(write: Callable[[Callable[[Transaction], Any]], Any]) -> None:
    first = write(start)
    before = write(lambda t: (t.accounts(), t.workspaces_all(), t.capacities(), t.providers(), t.ledger_accounts()))
    second = write(start)
    assert before == write(
        lambda t: (t.accounts(), t.workspaces_all(), t.capacities(), t.providers(), t.ledger_accounts())
    )
    assert first[0] == second[0] and second[1] == first[1] + 1


def test_an_earlier_database_gets_what_it_lacks(write: Callable[[Callable[[Transaction], Any]], Any]) -> None:
    def old(t: Transaction) -> None:
        t.put_setting("cluster_id", "cluster_old")
        t.add_workspace(Workspace("wksp_old", "default", "", 1.0))
        t.add_workspace(Workspace("wksp_more", "more", "", 2.0))
        t.add_capacity(Capacity("cap_old", "wksp_old", "default"), 1.0)
        t.put_sku(Sku("isku_1", "box"))
        t.put_node(Node("node_1", "mach_1", "isku_1", 2), "boot", "1", {}, 1.0)

    write(old)
    assert write(start)[0] == "cluster_old"
    local = write(lambda t: t.account_named("local")).account_id
    spaces = {one.workspace_id: one.account_id for one in write(lambda t: t.workspaces_all())}
    assert spaces["wksp_old"] == spaces["wksp_more"] == local
    assert write(lambda t: t.capacity("cap_old")).account_id == local
    (provider,) = write(lambda t: t.providers())
    assert [node.provider_id for node in write(lambda t: t.nodes())] == [provider.provider_id]
