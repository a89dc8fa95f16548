"""The first start can be cut off anywhere; the next one finishes it, and never makes a second owner's key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nanopod.model.errors import Invalid
from nanopod.model.ids import key_id_of
from nanopod.model.layout import Layout
from nanopod.server import first_start
from nanopod.store.sqlite import SqliteStore


class Cut(Exception):
    """The process was killed here."""


def start(layout: Layout, cut_after: int = 99) -> tuple[str, int]:
    """The steps of a start, cut off after some of them; (the owner's key, the era)."""

    async def run() -> tuple[str, int]:
        store = SqliteStore(layout.database)
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1
            if steps > cut_after:
                raise Cut

        try:
            has_keys = bool(await store.read(lambda read: read.api_keys()))
            step()
            pepper = first_start.load_pepper(layout, has_keys=has_keys)
            step()
            key = first_start.read_admin_key(layout)
            step()
            _, era = await store.write(lambda write: first_start.prepare(write, pepper, key, 5.0))
            step()
            first_start.publish_admin_key(layout)
            keys = await store.read(lambda read: read.api_keys())
            assert len(keys) == 1
            assert keys[0].key_id == key_id_of(key)
            return key, era
        finally:
            await store.close()

    return asyncio.run(run())


@pytest.mark.parametrize("cut_after", range(4))
def test_any_cut_is_mended(tmp_path: Path, cut_after: int) -> None:
    layout = Layout(tmp_path)
    with pytest.raises(Cut):
        start(layout, cut_after)
    key, _ = start(layout)
    assert layout.admin_key.read_text().strip() == key
    assert start(layout)[0] == key
    for path in (layout.admin_key, layout.pepper):
        assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["admin.key", "nanopod.db", "pepper"]


def test_eras_rise(tmp_path: Path) -> None:
    assert [start(Layout(tmp_path))[1] for _ in range(3)] == [1, 2, 3]


def test_a_lost_pepper_is_said_instead_of_made_anew(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    start(layout)
    layout.pepper.unlink()
    with pytest.raises(Invalid, match="restore the file"):
        start(layout)
    layout.pepper.write_bytes(b"short")
    with pytest.raises(Invalid, match="5 bytes"):
        start(layout)


def test_a_damaged_admin_key_is_said(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    start(layout)
    layout.admin_key.write_text("nonsense")
    with pytest.raises(Invalid, match=r"admin\.key"):
        start(layout)


def test_join_tokens_are_stable_and_each_their_own() -> None:
    keeper = first_start.FileSecrets(b"p" * 32)
    tokens = {keeper.join_token(i, e) for i in ("inst_a", "inst_b") for e in (1, 2)}
    assert len(tokens) == 4
    assert keeper.join_token("inst_a", 1) in tokens
    assert first_start.FileSecrets(b"q" * 32).join_token("inst_a", 1) not in tokens
    assert "p" * 8 not in repr(keeper)
