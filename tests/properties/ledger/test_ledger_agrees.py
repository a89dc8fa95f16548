"""The ledger as a value and the one in a database give the same answers and balances to random batches.

Also: an older version of the value still says what it said, and any split of a quantity is rated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from nanopod.ledger.aggregate import Event, aggregate
from nanopod.ledger.books import Ledger, Versions, check, open_accounts, post
from nanopod.ledger.charges import Graduated, Tier, charge
from nanopod.ledger.rating import Metered, Price
from nanopod.ledger.transfers import Account, Outcome, Transfer
from nanopod.store import ledger_schema
from nanopod.store.ledger import LedgerRows
from nanopod.store.schema import metadata

ACCOUNTS = [Account("a", True), Account("b", True), Account("c"), Account("d")]
NAMES = st.sampled_from(["a", "b", "c", "d", "missing"])
IDS = st.integers(1, 14)
EVEN, ODD = st.sampled_from(range(2, 15, 2)), st.sampled_from(range(1, 15, 2))
AMOUNTS = st.integers(0, 12)
TIMEOUTS = st.sampled_from([0, 0, 1, 2, 5])
LINKED = st.sampled_from([False, False, True])

moving = st.builds(Transfer, IDS, st.just("single"), NAMES, NAMES, AMOUNTS, linked=LINKED, balancing=LINKED)
holding = st.builds(
    Transfer, IDS, st.just("pending"), NAMES, NAMES, AMOUNTS, timeout_s=TIMEOUTS, linked=LINKED, balancing=LINKED
)
# A pending id is drawn apart from the id, so that the two differ without filtering.
posting = st.builds(
    lambda id, other, amount, linked: Transfer(id, "post", amount=amount, pending_id=other, linked=linked),
    EVEN,
    ODD,
    AMOUNTS,
    LINKED,
)
voiding = st.builds(
    lambda id, other, linked: Transfer(id, "void", pending_id=other, linked=linked),
    EVEN,
    ODD,
    LINKED,
)
batches = st.lists(
    st.tuples(st.lists(st.one_of(moving, holding, posting, voiding), max_size=7), st.integers(0, 3_000_000)),
    max_size=14,
)


@contextmanager
def rows() -> Iterator[LedgerRows]:
    engine = create_engine("sqlite://", poolclass=StaticPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        metadata.create_all(connection, tables=ledger_schema.TABLES)
        yield LedgerRows(connection)
    engine.dispose()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches)
def test_value_and_database_agree(steps: list[tuple[list[Transfer], int]]) -> None:
    ledger = open_accounts(Ledger(), ACCOUNTS)
    start = [Transfer(100, "single", "c", "a", 20), Transfer(101, "single", "c", "b", 20)]
    ledger, _ = post(ledger, start, 0)
    versions: list[tuple[Ledger, dict[str, Account]]] = []
    now = 0
    with rows() as stored:
        stored.open_accounts(ACCOUNTS)
        stored.post_transfers(start, 0)
        for transfers, later in steps:
            now += later
            versions.append((ledger, dict(ledger.accounts)))
            ledger, wanted = post(ledger, transfers, now)
            assert stored.post_transfers(transfers, now) == wanted
            assert stored.ledger_accounts() == sorted(ledger.accounts.values(), key=lambda account: account.id)
            assert check(ledger) == () == stored.check_ledger()
        for id, entry in ledger.entries.items():
            assert stored.ledger_entry(id) == (entry, ledger.settlement(id))
        for account in ACCOUNTS:
            assert [entry for entry, _ in stored.ledger_history(account.id)] == list(ledger.history(account.id))
            posted = [entry for entry in ledger.history(account.id) if entry.at_us < now]
            sums = sum(
                entry.amount * (1 if entry.credit == account.id else -1)
                for entry in posted
                if entry.transfer.kind != "pending"
            )
            assert stored.balance_at(account.id, now) == sums
    for version, before in versions:
        assert dict(version.accounts) == before, "an older value is as it was"
        assert check(version) == ()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches)
def test_repeating_everything_changes_nothing(steps: list[tuple[list[Transfer], int]]) -> None:
    """Each batch is sent twice at the same time: the second answer creates only what had failed for good reason."""
    ledger = open_accounts(Ledger(), ACCOUNTS)
    ledger, _ = post(ledger, [Transfer(100, "single", "c", "a", 20)], 0)
    now = 0
    for transfers, later in steps:
        now += later
        ledger, first = post(ledger, transfers, now)
        done = {result.id for result in first if result.outcome is Outcome.CREATED}
        _, again = post(ledger, transfers, now)
        assert not done & {result.id for result in again if result.outcome is Outcome.CREATED}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))), st.lists(st.booleans()))
def test_versions_are_independent(changes: list[tuple[int, int]], reads: list[bool]) -> None:
    version: Versions[int, int] = Versions()
    model: dict[int, int] = {}
    kept = [(version, dict(model))]
    for n, (key, value) in enumerate(changes):
        # Branch off an older version now and then.
        if n < len(reads) and reads[n]:
            version, old = kept[n // 2]
            model = dict(old)
        version = version.plus({key: value, key + 10: value})
        model.update({key: value, key + 10: value})
        kept.append((version, dict(model)))
    for version, wanted in reversed(kept):
        assert dict(version) == wanted
        assert len(version) == len(wanted)


@given(st.integers(0, 10**7), st.integers(1, 10**7), st.lists(st.integers(0, 10**6), max_size=30))
def test_any_split_of_a_quantity_costs_the_same(micro: int, per: int, quantities: list[int]) -> None:
    price = Price(micro, per)
    line, posted = Metered(), 0
    for quantity in quantities:
        line = line.plus(price, quantity)
        posted += line.due(posted)
    assert posted == Metered().plus(price, sum(quantities)).total == line.total


@given(st.lists(st.integers(0, 60), min_size=1, max_size=10))
def test_graduated_charges_are_sums_over_adjacent_tiers(quantities: list[int]) -> None:
    """Over adjacent tiers every whole unit has one price, whatever the total."""
    model = Graduated((Tier(0, 10, Price(7)), Tier(10, 100, Price(5)), Tier(100, None, Price(3))))
    units = sum(quantities)
    assert charge(model, units) == sum(7 if n < 10 else 5 if n < 100 else 3 for n in range(units))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(-50, 50)), max_size=12), st.integers(0, 20))
def test_weighted_sum_is_the_mean_level(changes: list[tuple[int, int]], before: int) -> None:
    level: Callable[[int], int] = lambda at: before + sum(change for when, change in changes if when <= at)  # noqa: E731
    wanted = sum(level(at) for at in range(100))
    assert (
        aggregate("weighted_sum", [Event(at, change) for at, change in changes], 0, 100, before=before) * 100 == wanted
    )
