"""Every outcome of a transfer, on the ledger as a value and on the one in the database."""

from __future__ import annotations

from typing import Any

import pytest
from ledger_books import AnyBooks, PureBooks, SqliteBooks

from nanopod.ledger.transfers import (
    AMOUNT_MAX,
    BALANCE_MAX,
    BATCH_MAX,
    Account,
    Kind,
    Outcome,
    Result,
    Transfer,
    id_text,
    transfer_id,
    verdict,
)
from nanopod.model.errors import Conflict, Invalid

S = 1_000_000


@pytest.fixture(params=[PureBooks, SqliteBooks])
def books(request: pytest.FixtureRequest) -> AnyBooks:
    """`a` is guarded and has 100; `b` and `c` are not guarded."""
    made: AnyBooks = request.param()
    made.open([Account("a", True), Account("b"), Account("c")])
    assert codes(made.post([single(1, "b", "a", 100)])) == ["created"]
    return made


def single(id: int, debit: str, credit: str, amount: int, **more: Any) -> Transfer:
    return Transfer(id, "single", debit, credit, amount, **more)


def hold(id: int, amount: int, timeout_s: int = 0, **more: Any) -> Transfer:
    return Transfer(id, "pending", "a", "b", amount, timeout_s=timeout_s, **more)


def settle(id: int, kind: Kind, pending_id: int, amount: int = 0, **more: Any) -> Transfer:
    return Transfer(id, kind, amount=amount, pending_id=pending_id, **more)


def codes(results: tuple[Result, ...]) -> list[str]:
    return [str(result.outcome) for result in results]


def one(books: AnyBooks, transfer: Transfer, now_us: int = 0) -> str:
    code = codes(books.post([transfer], now_us))[0]
    assert books.check() == ()
    return code


def four(books: AnyBooks, account_id: str = "a") -> tuple[int, int, int, int]:
    account = books.account(account_id)
    assert account is not None
    return account.debits_pending, account.debits_posted, account.credits_pending, account.credits_posted


def test_a_single_transfer_moves_money_for_good(books: AnyBooks) -> None:
    assert one(books, single(2, "a", "b", 30)) == "created"
    assert four(books) == (0, 30, 0, 100)
    assert four(books, "b") == (0, 100, 0, 30)


def test_a_hold_is_posted_in_part_and_the_rest_returns(books: AnyBooks) -> None:
    assert one(books, hold(2, 60)) == "created"
    assert four(books) == (60, 0, 0, 100)
    assert four(books, "b") == (0, 100, 60, 0)
    assert one(books, settle(3, "post", 2, 25)) == "created"
    assert four(books) == (0, 25, 0, 100)
    assert four(books, "b") == (0, 100, 0, 25)


def test_a_voided_hold_returns_everything(books: AnyBooks) -> None:
    one(books, hold(2, 60))
    assert one(books, settle(3, "void", 2)) == "created"
    assert four(books) == (0, 0, 0, 100)


def test_a_hold_expires_exactly_when_its_time_is_over(books: AnyBooks) -> None:
    one(books, hold(2, 60, timeout_s=10), now_us=5)
    assert one(books, single(3, "a", "b", 50), now_us=10 * S + 4) == "exceeds_credits"
    assert one(books, single(4, "a", "b", 50), now_us=10 * S + 5) == "created"
    assert four(books) == (0, 50, 0, 100)
    assert one(books, settle(5, "post", 2, 1), now_us=10 * S + 5) == "pending_transfer_expired"
    assert one(books, settle(6, "void", 2), now_us=10 * S + 6) == "pending_transfer_expired"


def test_a_hold_without_timeout_stays(books: AnyBooks) -> None:
    one(books, hold(2, 60))
    assert one(books, settle(3, "post", 2, 60), now_us=BALANCE_MAX) == "created"


def test_guarded_means_holds_count(books: AnyBooks) -> None:
    assert one(books, hold(2, 101)) == "exceeds_credits"
    assert one(books, hold(3, 100)) == "created"
    assert one(books, hold(4, 1)) == "exceeds_credits"
    assert one(books, single(5, "a", "c", 0)) == "created", "nothing is always affordable"


def test_pending_credits_cannot_be_spent(books: AnyBooks) -> None:
    assert one(books, Transfer(2, "pending", "b", "a", 50)) == "created"
    assert one(books, single(3, "a", "c", 101)) == "exceeds_credits"


EXISTS = [
    (hold(2, 60, 10), "exists"),
    (hold(2, 60, 10, code="other", ref="other"), "exists"),
    (Transfer(2, "single", "a", "b", 60), "exists_with_different_flags"),
    (hold(2, 60, 10, balancing=True), "exists_with_different_flags"),
    (hold(2, 60, 11), "exists_with_different_timeout"),
    (Transfer(2, "pending", "c", "c", 1, timeout_s=10), "exists_with_different_debit_account_id"),
    (Transfer(2, "pending", "a", "c", 1, timeout_s=10), "exists_with_different_credit_account_id"),
    (hold(2, 61, 10), "exists_with_different_amount"),
]


@pytest.mark.parametrize(("again", "code"), EXISTS, ids=[f"{n}-{code}" for n, (_, code) in enumerate(EXISTS)])
def test_an_id_is_used_once(books: AnyBooks, again: Transfer, code: str) -> None:
    one(books, hold(2, 60, 10), now_us=7)
    result = books.post([again], 8)[0]
    assert (result.outcome, result.amount, result.at_us) == (code, 60, 7)
    assert four(books) == (60, 0, 0, 100)


def test_a_flag_differs_by_linked(books: AnyBooks) -> None:
    books.post([hold(2, 1, linked=True), hold(3, 1)])
    assert one(books, hold(2, 1)) == "exists_with_different_flags"


def test_what_repeats_of_posts_and_voids_compare(books: AnyBooks) -> None:
    one(books, hold(2, 10))
    one(books, hold(3, 10))
    one(books, settle(4, "post", 2, 5))
    one(books, settle(5, "void", 3))
    assert one(books, settle(4, "post", 2, 5)) == "exists"
    assert one(books, settle(4, "post", 2, 6)) == "exists_with_different_amount"
    assert one(books, settle(4, "post", 3, 5)) == "exists_with_different_pending_id"
    assert one(books, settle(4, "void", 2)) == "exists_with_different_flags"
    assert one(books, settle(5, "void", 3)) == "exists"
    assert one(books, settle(5, "void", 2)) == "exists_with_different_pending_id"


def test_settling_what_cannot_be_settled(books: AnyBooks) -> None:
    assert one(books, settle(10, "post", 99, 1)) == "pending_transfer_not_found"
    assert one(books, settle(11, "post", 1, 1)) == "pending_transfer_not_pending"
    one(books, hold(2, 10))
    assert one(books, settle(12, "post", 2, 11)) == "exceeds_pending_transfer_amount"
    assert one(books, settle(13, "post", 2, 10)) == "created"
    assert one(books, settle(14, "post", 2, 1)) == "pending_transfer_already_posted"
    assert one(books, settle(15, "void", 2)) == "pending_transfer_already_posted"
    one(books, hold(3, 10))
    assert one(books, settle(16, "void", 3)) == "created"
    assert one(books, settle(17, "post", 3, 1)) == "pending_transfer_already_voided"
    assert one(books, settle(18, "void", 3)) == "pending_transfer_already_voided"
    one(books, hold(4, 10))
    assert one(books, settle(19, "post", 4, 0)) == "created", "posting nothing settles too"
    assert one(books, settle(20, "void", 4)) == "pending_transfer_already_posted"


def test_accounts_must_exist_and_differ(books: AnyBooks) -> None:
    assert one(books, single(2, "x", "x", 1)) == "accounts_must_be_different"
    assert one(books, single(3, "x", "y", 1)) == "debit_account_not_found"
    assert one(books, single(4, "a", "y", 1)) == "credit_account_not_found"


def test_failures_of_the_moment_burn_the_id(books: AnyBooks) -> None:
    burnt = [
        (single(2, "x", "a", 1), "debit_account_not_found"),
        (single(3, "a", "x", 1), "credit_account_not_found"),
        (single(4, "a", "b", 1_000), "exceeds_credits"),
        (settle(5, "post", 77, 1), "pending_transfer_not_found"),
    ]
    for transfer, code in burnt:
        assert one(books, transfer) == code
    books.open([Account("x")])
    assert one(books, single(8, "b", "a", 10_000)) == "created"
    assert one(books, Transfer(77, "pending", "a", "b", 5)) == "created"
    for transfer, _ in burnt:
        assert one(books, transfer) == "id_already_failed"
    assert one(books, single(4, "a", "c", 1)) == "id_already_failed", "whatever it asks now"


def test_other_failures_leave_the_id_free(books: AnyBooks) -> None:
    one(books, hold(2, 10))
    assert one(books, settle(3, "post", 2, 11)) == "exceeds_pending_transfer_amount"
    assert one(books, settle(3, "post", 2, 10)) == "created"
    assert one(books, single(4, "a", "a", 1)) == "accounts_must_be_different"
    assert one(books, single(4, "a", "b", 1)) == "created"


def test_balances_stay_within_a_database_integer(books: AnyBooks) -> None:
    whole, rest = divmod(BALANCE_MAX - 100, AMOUNT_MAX)
    made = 0
    while made < whole:
        batch = [single(10 + made + n, "b", "c", AMOUNT_MAX) for n in range(min(BATCH_MAX, whole - made))]
        assert set(codes(books.post(batch))) == {"created"}
        made += len(batch)
    assert one(books, single(2, "b", "c", rest)) == "created"
    assert four(books, "b")[1] == BALANCE_MAX
    assert one(books, Transfer(3, "pending", "b", "a", 1)) == "overflows_debits"
    assert one(books, single(4, "a", "c", 100)) == "created"
    books.open([Account("d")])
    assert one(books, single(5, "d", "c", 1)) == "overflows_credits"


# --- balancing ---


def test_balancing_moves_what_is_left(books: AnyBooks) -> None:
    one(books, hold(2, 30))
    result = books.post([single(3, "a", "b", 1_000, balancing=True)])[0]
    assert (result.outcome, result.amount) == ("created", 70)
    assert four(books) == (30, 70, 0, 100)
    assert books.post([single(4, "a", "b", 5, balancing=True)])[0].amount == 0
    assert one(books, single(3, "a", "b", 70, balancing=True)) == "exists"
    assert one(books, single(3, "a", "b", 69, balancing=True)) == "exists_with_different_amount"


def test_balancing_an_account_below_zero_moves_nothing(books: AnyBooks) -> None:
    result = books.post([single(2, "b", "c", 5, balancing=True)])[0]
    assert (result.outcome, result.amount) == ("created", 0)


def test_a_balancing_hold(books: AnyBooks) -> None:
    result = books.post([hold(2, 1_000, balancing=True)])[0]
    assert (result.outcome, result.amount) == ("created", 100)
    assert one(books, settle(3, "post", 2, 100)) == "created"


# --- chains ---


def test_a_chain_is_done_as_a_whole(books: AnyBooks) -> None:
    chain = [single(2, "a", "b", 60, linked=True), single(3, "b", "c", 60, linked=True), hold(4, 40)]
    results = books.post(chain)
    assert codes(results) == ["created"] * 3
    assert verdict(results) == "created"
    again = books.post(chain)
    assert codes(again) == ["exists", "linked_event_failed", "linked_event_failed"]
    assert verdict(again) == "exists"


def test_a_broken_chain_leaves_nothing(books: AnyBooks) -> None:
    results = books.post(
        [
            single(2, "a", "b", 10),
            single(3, "a", "b", 10, linked=True),
            hold(4, 10, linked=True),
            single(5, "a", "b", 1_000, linked=True),
            single(6, "a", "b", 1),
            single(7, "a", "b", 10),
        ]
    )
    assert codes(results) == [
        "created", "linked_event_failed", "linked_event_failed", "exceeds_credits", "linked_event_failed", "created",
    ]  # fmt: skip
    assert verdict(results[1:5]) == "exceeds_credits"
    assert four(books) == (0, 20, 0, 100)
    assert books.check() == ()
    assert one(books, single(5, "a", "b", 1)) == "id_already_failed", "the culprit's id is burnt"
    assert one(books, single(3, "a", "b", 10)) == "created", "the others' ids are free"


def test_a_chain_may_settle_what_it_holds(books: AnyBooks) -> None:
    chain = [hold(2, 100, linked=True), settle(3, "post", 2, 40, linked=True), single(4, "a", "b", 61)]
    assert codes(books.post(chain)) == ["linked_event_failed", "linked_event_failed", "exceeds_credits"]
    assert four(books) == (0, 0, 0, 100)
    chain = [hold(2, 100, linked=True), settle(3, "post", 2, 40, linked=True), single(5, "a", "b", 60)]
    assert codes(books.post(chain)) == ["created"] * 3
    assert four(books) == (0, 100, 0, 100)
    assert books.check() == ()


def test_a_broken_chain_reopens_the_hold_it_settled(books: AnyBooks) -> None:
    one(books, hold(2, 50))
    results = books.post([settle(3, "void", 2, linked=True), single(4, "a", "b", 101)])
    assert codes(results) == ["linked_event_failed", "exceeds_credits"]
    assert four(books) == (50, 0, 0, 100)
    assert one(books, settle(5, "post", 2, 50)) == "created"


def test_expiry_is_not_undone_with_a_chain(books: AnyBooks) -> None:
    one(books, hold(2, 50, timeout_s=1))
    results = books.post([single(3, "a", "b", 1, linked=True), single(4, "a", "b", 1_000)], 2 * S)
    assert codes(results) == ["linked_event_failed", "exceeds_credits"]
    assert four(books) == (0, 0, 0, 100)
    assert one(books, settle(5, "void", 2), 2 * S) == "pending_transfer_expired"


def test_an_open_chain_is_refused(books: AnyBooks) -> None:
    results = books.post([single(2, "a", "b", 1, linked=True), single(3, "a", "b", 1, linked=True)])
    assert codes(results) == ["linked_event_failed", "linked_event_chain_open"]
    assert four(books) == (0, 0, 0, 100)
    broken = books.post([single(4, "x", "b", 1, linked=True), single(5, "a", "b", 1, linked=True)])
    assert codes(broken) == ["debit_account_not_found", "linked_event_chain_open"]


def test_two_chains_in_a_row(books: AnyBooks) -> None:
    results = books.post(
        [
            single(2, "a", "b", 10, linked=True),
            single(3, "a", "x", 10),
            single(4, "a", "b", 20, linked=True),
            single(5, "a", "c", 20),
        ]
    )
    assert codes(results) == ["linked_event_failed", "credit_account_not_found", "created", "created"]
    assert four(books) == (0, 40, 0, 100)


def test_one_id_twice_in_a_batch(books: AnyBooks) -> None:
    assert codes(books.post([single(2, "a", "b", 10), single(2, "a", "b", 10)])) == ["created", "exists"]
    assert codes(books.post([single(3, "a", "b", 1_000), single(3, "a", "b", 1)])) == [
        "exceeds_credits", "id_already_failed",
    ]  # fmt: skip
    assert four(books) == (0, 10, 0, 100)


def test_every_code_is_tested_here() -> None:
    from pathlib import Path

    text = Path(__file__).read_text()
    assert [code for code in Outcome if f'"{code}"' not in text] == []


# --- shapes ---


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", {"id": 0}),
        ("id", {"id": 2**128}),
        ("id", {"id": "x"}),
        ("amount", {"amount": -1}),
        ("amount", {"amount": AMOUNT_MAX + 1}),
        ("amount", {"amount": 1.5}),
        ("kind", {"kind": "double"}),
        ("debit", {"debit": ""}),
        ("credit", {"credit": ""}),
        ("timeout_s", {"timeout_s": 5}),
        ("timeout_s", {"kind": "pending", "timeout_s": -1}),
        ("pending_id", {"pending_id": 5}),
        ("pending_id", {"kind": "post", "debit": "", "credit": ""}),
        ("pending_id", {"kind": "post", "debit": "", "credit": "", "pending_id": 9}),
        ("debit", {"kind": "post", "pending_id": 5}),
        ("amount", {"kind": "void", "debit": "", "credit": "", "pending_id": 5}),
        ("balancing", {"kind": "post", "debit": "", "credit": "", "pending_id": 5, "balancing": True}),
    ],
)
def test_what_no_transfer_can_be(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as raised:
        Transfer(**{"id": 9, "kind": "single", "debit": "a", "credit": "b", "amount": 1, **values})
    assert raised.value.field == field


def test_a_batch_is_bounded(books: AnyBooks) -> None:
    with pytest.raises(Invalid, match="1001"):
        books.post([single(n + 10, "a", "b", 0) for n in range(BATCH_MAX + 1)])


def test_a_guard_is_chosen_once(books: AnyBooks) -> None:
    books.open([Account("a", True), Account("new"), Account("new")])
    assert four(books) == (0, 0, 0, 100), "opening again changes nothing"
    with pytest.raises(Conflict, match="guarded"):
        books.open([Account("a", False)])


def test_ids_come_from_words() -> None:
    assert transfer_id("k", "a") == transfer_id("k", "a")
    assert len({transfer_id("k"), transfer_id("k", "a"), transfer_id("ka"), transfer_id("k", "b")}) == 4
    assert len(id_text(transfer_id("k"))) == 32
