"""Statements past SQLAlchemy give what it would give: the same rows, the same errors; numbers and notices in one go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, IntegrityError

from nanopod.model.capacity import Sku
from nanopod.model.money import Rate
from nanopod.model.order import Order
from nanopod.model.schedule import Entry, Schedule, Window
from nanopod.store.market_schema import market_order
from nanopod.store.transaction import Transaction

InWrite = Callable[[Callable[[Transaction], Any]], Any]
SHAPE = Schedule((Entry(Window(600, 1200), 4),))


def test_a_row_is_the_one_that_sqlalchemy_reads(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        made = Order("ordr_1", "w1", "a1", "c1", "s1", "buy", SHAPE, Rate(7), allow_standing=True, created_at=1.5)
        write.add_order(made, 1)
        plain = write._row(market_order, id="ordr_1", workspace_id="w1")
        assert plain is not None
        row = write.connection.execute(select(market_order)).one()
        assert plain._asdict() == dict(row._mapping)
        assert [type(value) for value in plain] == [type(value) for value in row]
        assert plain.allow_standing is True
        assert write._row(market_order, id="ordr_1", workspace_id="w2") is None

    in_write(test)


def test_errors_are_those_of_sqlalchemy_and_hold_no_values(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        write.remember("w1", "orders", "secret-key", "ordr_1", 1.0)
        with pytest.raises(IntegrityError) as caught, write.part():
            write.remember("w1", "orders", "secret-key", "ordr_2", 1.0)
        assert isinstance(caught.value.orig, write.connection.dialect.loaded_dbapi.IntegrityError)
        with pytest.raises(DBAPIError), write.part():
            write._raw("SELECT 1 FROM nowhere")
        with pytest.raises(DBAPIError), write.part():
            write._raw_many("INSERT INTO nowhere (x) VALUES (?)", [(1,), (2,)])
        assert write.seen_before("w1", "orders", "secret-key") == "ordr_1"

    in_write(test)


def test_a_part_that_fails_gives_its_numbers_and_notices_back(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        first = write.add_notice(1.0, "w1", "x", "o1", {})

        def fail() -> None:
            with write.part():
                write.add_notice(2.0, "w1", "x", "o2", {})
                write.next_number("order", 5)
                raise ValueError("so be it")

        with pytest.raises(ValueError, match="so be it"):
            fail()
        with write.part():
            second = write.add_notice(3.0, "w1", "x", "o3", {})
        assert (first.seq, second.seq, write.next_number("order")) == (1, 2, 1)
        assert write.notices_after(None, 0) == [first, second] == write.news

    in_write(test)


def test_what_waited_is_there_after_the_commit(in_write: InWrite) -> None:
    def first(write: Transaction) -> None:
        write.add_notice(1.0, "w1", "x", "o1", {"n": 1})
        write.add_notice(2.0, "w2", "x", "o2", {"n": 2})
        assert write.next_number("order", 3) == 1

    def second(write: Transaction) -> None:
        assert [one.data for one in write.notices_after(None, 0)] == [{"n": 1}, {"n": 2}]
        assert write.notice_last() == 2
        assert write.next_number("order") == 4
        write.put_sku(Sku("s2", "b"))
        write.put_sku(Sku("s1", "a"))
        assert [one.sku_id for one in write.skus()] == ["s1", "s2"]

    in_write(first)
    in_write(second)
