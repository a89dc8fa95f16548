"""The same books twice, behind one face: as a value and as rows of an SQLite database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from nanopod.ledger.books import Ledger, check, open_accounts, post
from nanopod.ledger.chart import accounts_of
from nanopod.ledger.transfers import Account, Outcome, Result, Transfer
from nanopod.store import ledger_schema
from nanopod.store.ledger import LedgerRows
from nanopod.store.schema import metadata


class PureBooks:
    def __init__(self) -> None:
        self.ledger = Ledger()

    def open(self, accounts: Iterable[Account]) -> None:
        self.ledger = open_accounts(self.ledger, accounts)

    def post(self, transfers: Sequence[Transfer], now_us: int = 0) -> tuple[Result, ...]:
        self.ledger, results = post(self.ledger, transfers, now_us)
        return results

    def account(self, account_id: str) -> Account | None:
        return self.ledger.account(account_id)

    def check(self) -> tuple[str, ...]:
        return check(self.ledger)


class SqliteBooks:
    def __init__(self) -> None:
        engine = create_engine("sqlite://", poolclass=StaticPool, isolation_level="AUTOCOMMIT")
        self.connection = engine.connect()
        metadata.create_all(self.connection, tables=ledger_schema.TABLES)
        self.rows = LedgerRows(self.connection)

    def open(self, accounts: Iterable[Account]) -> None:
        self.rows.open_accounts(accounts)

    def post(self, transfers: Sequence[Transfer], now_us: int = 0) -> tuple[Result, ...]:
        return self.rows.post_transfers(transfers, now_us)

    def account(self, account_id: str) -> Account | None:
        return self.rows.ledger_account(account_id)

    def check(self) -> tuple[str, ...]:
        return self.rows.check_ledger()


AnyBooks = PureBooks | SqliteBooks


def done(books: AnyBooks, chain: Sequence[Transfer], now_us: int = 0) -> None:
    """Post a recipe whose accounts may be new; it must succeed."""
    assert chain, "a recipe that moves nothing tests nothing"
    books.open(accounts_of(chain))
    results = books.post(chain, now_us)
    assert all(result.outcome is Outcome.CREATED for result in results), results
    assert books.check() == ()
