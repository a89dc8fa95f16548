"""Each kind of business: what it moves, who can refuse it, and that it can be repeated without harm."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_books import AnyBooks, PureBooks, SqliteBooks, done

from nanopod.ledger import chart, funding, orders, recipes
from nanopod.ledger.balance import balance, runway_s
from nanopod.ledger.funding import Part, in_order, split
from nanopod.ledger.transfers import Account, Outcome, verdict
from nanopod.model.errors import Invalid, PaymentRequired

W = "wksp_1"
SKU = "isku_h100"
S = 1_000_000


@pytest.fixture(params=[PureBooks, SqliteBooks])
def books(request: pytest.FixtureRequest) -> AnyBooks:
    made: AnyBooks = request.param()
    return made


def of(books: AnyBooks, account_id: str) -> int:
    account = books.account(account_id)
    return 0 if account is None else account.balance


def left(books: AnyBooks, account_id: str) -> int:
    account = books.account(account_id)
    return 0 if account is None else account.available


def refused(books: AnyBooks, chain: recipes.Chain, now_us: int = 0) -> str:
    books.open(chart.accounts_of(chain))
    outcome = verdict(books.post(chain, now_us))
    assert outcome is not Outcome.CREATED
    assert books.check() == ()
    return str(outcome)


def test_money_in_use_and_back(books: AnyBooks) -> None:
    done(books, recipes.top_up("pay_1", W, 100))
    assert refused(books, recipes.top_up("pay_1", W, 100)) == "exists", "a payment event that comes twice counts once"
    done(books, recipes.use("req_1", [Part(funding.prepaid(W), 30)], chart.revenue(SKU)))
    assert refused(books, recipes.pay_back("back_1", W, 71)) == "exceeds_credits"
    done(books, recipes.pay_back("back_2", W, 70))
    assert (of(books, chart.prepaid(W)), of(books, chart.revenue(SKU)), of(books, chart.CASH)) == (0, 30, -30)


def test_postpaid_use_and_payment(books: AnyBooks) -> None:
    done(books, recipes.set_line("line_1", W, 50))
    line = funding.credit_line(W)
    done(books, recipes.use("req_1", [Part(line, 40)], chart.revenue(SKU)))
    assert (of(books, chart.receivable(W)), left(books, chart.credit_line(W))) == (-40, 10)
    assert refused(books, recipes.use("req_2", [Part(line, 11)], chart.revenue(SKU))) == "exceeds_credits"
    assert of(books, chart.receivable(W)) == -40, "neither half of a refused pair is booked"
    assert refused(books, recipes.set_line("line_2", W, -11)) == "exceeds_credits"
    done(books, recipes.payment("pay_1", W, 40))
    assert (of(books, chart.receivable(W)), left(books, chart.credit_line(W))) == (0, 50)
    done(books, recipes.set_line("line_3", W, -50))
    assert (of(books, chart.CASH), of(books, chart.revenue(SKU))) == (-40, 40)


def test_an_hour_under_full_subsidy_pays_the_owner(books: AnyBooks) -> None:
    hour = 2_190_000
    done(books, recipes.issue_grant("g", "grnt_1", 10_000_000))
    grant = funding.subsidy("grnt_1", "city", 0)
    parts = split(hour, [grant], lambda id: left(books, id))
    delivered = recipes.supply("u/supply", SKU, "node_1", hour)
    done(books, recipes.together(recipes.use("u", parts, chart.revenue(SKU)), delivered))
    assert of(books, chart.subsidy_expense("city")) == -hour
    assert of(books, chart.revenue(SKU)) == of(books, chart.supplier_payable("node_1")) == hour
    assert of(books, chart.prepaid(W)) == 0
    assert left(books, chart.grant("grnt_1")) == 10_000_000 - hour


def test_what_is_left_of_a_grant_expires_without_expense(books: AnyBooks) -> None:
    done(books, recipes.issue_grant("g", "grnt_1", 100))
    done(books, recipes.use("u", [Part(funding.coupon("grnt_1"), 30)], chart.revenue(SKU)))
    done(books, recipes.expire_grant("x", "grnt_1"))
    assert left(books, chart.grant("grnt_1")) == 0
    assert (of(books, chart.DISCOUNT_EXPENSE), of(books, chart.GRANT_BUDGET)) == (-30, 0)


def test_payouts_are_at_most_what_is_owed(books: AnyBooks) -> None:
    done(books, recipes.supply("s", SKU, "node_1", 70))
    done(books, recipes.payout("p1", "node_1", 50))
    done(books, recipes.payout("p2", "node_1"))
    assert of(books, chart.supplier_payable("node_1")) == 0
    assert (of(books, chart.CASH), of(books, chart.supply_cost(SKU))) == (70, -70)


def test_refund_gives_every_source_its_part_back(books: AnyBooks) -> None:
    done(books, recipes.top_up("p", W, 10))
    done(books, recipes.set_line("l", W, 10))
    done(books, recipes.issue_grant("g", "grnt_1", 10))
    sources = [funding.coupon("grnt_1"), funding.prepaid(W), funding.credit_line(W)]
    parts = split(25, sources, lambda id: left(books, id))
    assert [part.amount for part in parts] == [10, 10, 5]
    done(books, recipes.use("u", parts, chart.revenue(SKU)))
    done(books, recipes.refund("r", parts, chart.revenue(SKU)))
    for account in (chart.grant("grnt_1"), chart.prepaid(W), chart.credit_line(W)):
        assert left(books, account) == 10
    for account in (chart.revenue(SKU), chart.receivable(W), chart.DISCOUNT_EXPENSE):
        assert of(books, account) == 0


def test_a_correction_is_the_reverse_and_names_what_it_corrects() -> None:
    books = PureBooks()
    done(books, recipes.top_up("p", W, 10))
    (entry,) = books.ledger.entries.values()
    chain = recipes.reverse("fix", entry)
    done(books, chain)
    assert of(books, chart.prepaid(W)) == 0
    assert chain[0].ref == f"{entry.transfer.id:032x}"
    done(books, recipes.top_up("q", W, 10))
    held = recipes.Hold("h", chart.revenue(SKU), (Part(funding.prepaid(W), 5),))
    done(books, held.chain())
    with pytest.raises(Invalid, match="void"):
        recipes.reverse("no", list(books.ledger.entries.values())[-1])


# --- holds ---


def three(books: AnyBooks) -> recipes.Hold:
    """A hold of 10 of a coupon, 10 prepaid and 5 of the line."""
    done(books, recipes.top_up("p", W, 10))
    done(books, recipes.set_line("l", W, 10))
    done(books, recipes.issue_grant("g", "grnt_1", 10))
    sources = [funding.coupon("grnt_1"), funding.prepaid(W), funding.credit_line(W)]
    parts = split(25, sources, lambda id: left(books, id))
    hold = recipes.Hold("h", chart.revenue(SKU), parts, "req_1", 60)
    done(books, hold.chain())
    return hold


@pytest.mark.parametrize(
    ("used", "lefts"), [(0, (10, 10, 10)), (4, (6, 10, 10)), (13, (0, 7, 10)), (25, (0, 0, 5)), (21, (0, 0, 9))]
)
def test_settling_a_hold_uses_sources_in_order(books: AnyBooks, used: int, lefts: tuple[int, int, int]) -> None:
    hold = three(books)
    assert [left(books, id) for id in (chart.grant("grnt_1"), chart.prepaid(W), chart.credit_line(W))] == [0, 0, 5]
    chain, beyond = recipes.settle("s", hold, used)
    assert beyond == 0
    done(books, chain)
    assert tuple(left(books, id) for id in (chart.grant("grnt_1"), chart.prepaid(W), chart.credit_line(W))) == lefts
    assert of(books, chart.revenue(SKU)) == used
    assert refused(books, chain) == "exists"
    assert refused(books, recipes.release("again", hold)).startswith("pending_transfer_already_")


def test_more_than_was_held_is_charged_apart_or_carried_by_the_operator(books: AnyBooks) -> None:
    hold = three(books)
    chain, beyond = recipes.settle("s", hold, 32)
    assert beyond == 7
    done(books, chain)
    assert refused(books, recipes.use("more", [Part(funding.prepaid(W), 7)], chart.revenue(SKU))) == "exceeds_credits"
    done(books, recipes.bad_debt("bad", chart.revenue(SKU), 7))
    assert (of(books, chart.revenue(SKU)), of(books, chart.BAD_DEBT)) == (32, -7)
    assert left(books, chart.prepaid(W)) == 0


def test_a_forgotten_hold_returns_and_a_late_post_says_so(books: AnyBooks) -> None:
    hold = three(books)
    assert refused(books, recipes.settle("s", hold, 4)[0], 60 * S) == "pending_transfer_expired"
    assert [left(books, id) for id in (chart.grant("grnt_1"), chart.prepaid(W), chart.credit_line(W))] == [10] * 3


def test_renewal_is_one_step(books: AnyBooks) -> None:
    hold = three(books)
    fresh = recipes.rest("h2", hold, 12, 13)
    assert [part.amount for part in fresh.parts] == [8, 5]
    done(books, recipes.renew("r", hold, 12, fresh))
    assert of(books, chart.revenue(SKU)) == 12
    more = recipes.Hold("h3", chart.revenue(SKU), (Part(funding.prepaid(W), 9),))
    assert refused(books, recipes.renew("r2", fresh, 0, more)) == "exceeds_credits"
    assert refused(books, recipes.renew("r", hold, 12, fresh)) == "exists"
    done(books, recipes.settle("s2", fresh, 13)[0])
    with pytest.raises(Invalid, match="remain"):
        recipes.rest("h4", hold, 12, 14)
    with pytest.raises(Invalid, match="excess"):
        recipes.renew("r3", hold, 26, fresh)


# --- who pays ---


def test_funding_order() -> None:
    late, soon, never = (funding.coupon(f"g{n}", 2, at) for n, at in ((1, 900), (2, 500), (3, None)))
    first, gone = funding.coupon("g4", 1, None), funding.coupon("g5", 1, 100)
    twin = funding.coupon("g0", 2, 500)
    grant = funding.subsidy("g6", "city", 0)
    pocket, line = funding.prepaid(W), funding.credit_line(W)
    assert in_order([line, never, pocket, late, gone, soon, twin, first, grant], 100) == (
        grant, first, twin, soon, late, never, pocket, line,
    )  # fmt: skip
    with pytest.raises(Invalid, match="priority"):
        funding.coupon("g", 51)


def test_the_customers_share_never_drifts() -> None:
    have = {chart.grant("g"): 10**9, chart.prepaid(W): 10**9}
    sources = [funding.subsidy("g", "city", 3_333), funding.prepaid(W)]
    paid = carried = 0
    for n in range(333):
        for part in split(7, sources, have.__getitem__, charged_before=7 * n):
            if part.source.kind == "subsidy":
                carried += part.amount
            else:
                paid += part.amount
    assert (paid, carried) == (777, 7 * 333 - 777), "round(2331 * 0.3333) = 777"
    assert funding.customer_share(2_331, 3_333) == 777
    with pytest.raises(Invalid):
        funding.customer_share(1, 10_001)


def test_what_a_grant_cannot_carry_falls_to_the_customer() -> None:
    have = {chart.grant("g"): 30, chart.prepaid(W): 1_000}
    parts = split(100, [funding.subsidy("g", "city", 5_000), funding.prepaid(W)], have.__getitem__)
    assert [part.amount for part in parts] == [30, 70]
    with pytest.raises(PaymentRequired, match=r"top up \$0.000970"):
        split(2_000, [funding.subsidy("g", "city", 5_000), funding.prepaid(W)], have.__getitem__)


@given(st.integers(0, 10_000), st.integers(0, 500), st.integers(0, 300), st.integers(0, 10_000), st.data())
def test_a_settled_hold_is_shared_like_a_charge(
    bps: int, total: int, grant: int, before: int, data: st.DataObject
) -> None:
    """Posting in two steps (a renewal between them) gives the customer's share of what was used, if the grant lasts."""
    have = {chart.grant("g"): grant, chart.prepaid(W): 10_000}
    sources = [funding.subsidy("g", "city", bps), funding.prepaid(W)]
    parts = split(total, sources, have.__getitem__, charged_before=before)
    hold = recipes.Hold("h", chart.revenue(SKU), parts, "r", 0, before)
    used = data.draw(st.integers(0, total))
    keep = data.draw(st.integers(0, total - used))
    rest = recipes.rest("h2", hold, used, keep)
    assert rest.amount == keep
    last = data.draw(st.integers(0, keep))
    carried = paid = 0
    for settled in (recipes.settle("s", hold, used), recipes.settle("s2", rest, last)):
        assert settled[1] == 0
        for transfer in settled[0]:
            if transfer.pending_id in ids(hold, "prepaid") | ids(rest, "prepaid"):
                paid += transfer.amount
            elif transfer.pending_id in ids(hold, "subsidy") | ids(rest, "subsidy"):
                carried += transfer.amount
    assert paid + carried == used + last
    share = funding.customer_share(before + used + last, bps) - funding.customer_share(before, bps)
    assert paid == max(share, used + last - grant)


def ids(hold: recipes.Hold, kind: str) -> set[int]:
    """Ids of the pending transfers that reach the target out of sources of a kind."""
    payers = {part.source.payer for part in hold.parts if part.source.kind == kind}
    return {transfer.id for transfer in hold.chain() if transfer.debit in payers}


def test_a_percentage_coupon_is_carried_by_the_operator(books: AnyBooks) -> None:
    done(books, recipes.top_up("p", W, 100))
    sources = in_order([funding.prepaid(W), funding.discount(8_000)], 0)
    parts = split(100, sources, lambda id: left(books, id))
    done(books, recipes.use("u", parts, chart.revenue(SKU)))
    assert (left(books, chart.prepaid(W)), of(books, chart.DISCOUNT_EXPENSE)) == (20, -20)
    assert of(books, chart.revenue(SKU)) == 100


def test_subsidy_and_discount_each_carry_their_own_share() -> None:
    have = {chart.grant("g"): 30, chart.prepaid(W): 1_000}
    sources = [funding.subsidy("g", "city", 5_000), funding.discount(4_500), funding.prepaid(W)]
    assert [part.amount for part in split(40, sources, have.__getitem__)] == [20, 2, 18]
    assert [part.amount for part in split(100, sources, have.__getitem__)] == [30, 5, 65], (
        "the funder's lack is not ours"
    )
    parts = split(40, sources, have.__getitem__)
    assert funding.take(parts, 20) == [10, 1, 9]
    assert [sum(funding.take(parts, n)) for n in range(42)] == [*range(41), 40]


def test_the_balance_of_a_workspace(books: AnyBooks) -> None:
    done(books, recipes.top_up("p", W, 100))
    done(books, recipes.set_line("l", W, 50))
    sources = [funding.prepaid(W), funding.credit_line(W)]
    done(books, recipes.use("u", split(110, sources, lambda id: left(books, id)), chart.revenue(SKU)))
    hold = recipes.Hold("h", chart.revenue(SKU), split(15, sources, lambda id: left(books, id)))
    done(books, hold.chain())
    seen = balance(W, books.account)
    assert (seen.current, seen.holds, seen.available, seen.overage_limit) == (-10, 15, -25, 50)
    assert seen.spending_power == 25
    assert runway_s(300, 100, 600) == 1_800
    assert runway_s(300, 0, 600) is None


# --- the market ---


def test_the_worked_order_example(books: AnyBooks) -> None:
    """2 nodes x 90 minutes, limit 60,000: hold $10.80; fills of $3.60 and $3.00; $4.20 released."""
    done(books, recipes.top_up("p", W, 20 * S))
    hold = orders.order_hold("ordr_1", (Part(funding.prepaid(W), 60_000 * 180),))
    assert hold.amount == 10_800_000
    done(books, hold.chain())
    assert left(books, chart.prepaid(W)) == 9_200_000
    provider, reseller = orders.Seller("prov_1", provider=True), orders.Seller("wksp_2")
    first, rest = orders.fill("cont_1", hold, 3_600_000, 36_000, 60_000 * 60, provider, SKU)
    assert rest is not None
    done(books, first)
    assert left(books, chart.prepaid(W)) == (20 * S) - 3_600_000 - 3_600_000
    second, none = orders.fill("cont_2", rest, 3_000_000, 0, 0, reseller, SKU)
    assert none is None
    done(books, second)
    assert left(books, chart.prepaid(W)) == of(books, chart.prepaid(W)) == 13_400_000
    assert of(books, chart.ORDERS) == 0
    assert (of(books, chart.undelivered("prov_1")), of(books, chart.prepaid("wksp_2"))) == (3_564_000, 3_000_000)
    assert of(books, chart.fees(SKU)) == 36_000
    assert refused(books, first) == "exists"


def test_a_cancelled_order_gets_its_hold_back(books: AnyBooks) -> None:
    done(books, recipes.top_up("p", W, 100))
    hold = orders.order_hold("ordr_1", (Part(funding.prepaid(W), 100),))
    done(books, hold.chain())
    seller = orders.Seller("prov_1", provider=True)
    chain, rest = orders.fill("cont_1", hold, 10, 0, 60, seller, SKU)
    done(books, chain)
    assert rest is not None
    done(books, recipes.release("cancel", rest))
    assert left(books, chart.prepaid(W)) == 90


def test_a_provider_is_paid_as_it_delivers(books: AnyBooks) -> None:
    done(books, recipes.top_up("p", W, 100))
    hold = orders.order_hold("ordr_1", (Part(funding.prepaid(W), 100),))
    done(books, hold.chain())
    done(books, orders.fill("cont_1", hold, 100, 0, 0, orders.Seller("prov_1", provider=True), SKU)[0])
    assert [orders.released(100, n, 7) for n in range(8)] == [0, 14, 28, 42, 57, 71, 85, 100]
    done(books, orders.deliver("cont_1", "prov_1", 100, 0, 3, 7))
    done(books, recipes.payout("pay_1", "prov_1"))
    assert of(books, chart.CASH) == -100 + 42, "what is not delivered cannot be paid out"
    assert refused(books, orders.deliver("cont_1", "prov_1", 100, 0, 3, 7)) == "exists"
    done(books, orders.deliver("cont_1", "prov_1", 100, 3, 7, 7))
    done(books, recipes.payout("pay_2", "prov_1"))
    assert (of(books, chart.undelivered("prov_1")), of(books, chart.CASH)) == (0, 0)


def test_lost_blocks_are_refunded_by_seller_and_platform(books: AnyBooks) -> None:
    done(books, recipes.top_up("p", W, 60))
    done(books, recipes.set_line("l", W, 100))
    sources = [funding.prepaid(W), funding.credit_line(W)]
    parts = split(100, sources, lambda id: left(books, id))
    hold = orders.order_hold("ordr_1", parts)
    done(books, hold.chain())
    seller = orders.Seller("prov_1", provider=True)
    done(books, orders.fill("cont_1", hold, 100, 10, 0, seller, SKU)[0])
    back = (Part(funding.prepaid(W), 10), Part(funding.credit_line(W), 40))
    done(books, orders.refund_undelivered("r", "cont_1", back, seller, 45, 5, SKU))
    assert (of(books, chart.undelivered("prov_1")), of(books, chart.fees(SKU)), of(books, chart.ORDERS)) == (45, 5, 0)
    assert (left(books, chart.prepaid(W)), left(books, chart.credit_line(W))) == (10, 100)
    with pytest.raises(Invalid, match="50"):
        orders.refund_undelivered("r", "cont_1", back[:1], seller, 45, 5, SKU)


def test_what_no_contract_can_be() -> None:
    hold = orders.order_hold("o", (Part(funding.prepaid(W), 10),))
    with pytest.raises(Invalid, match="fee"):
        orders.fill("c", hold, 5, 6, 0, orders.Seller("x"), SKU)
    with pytest.raises(Invalid, match="exceed"):
        orders.fill("c", hold, 5, 0, 6, orders.Seller("x"), SKU)


def test_the_chart_knows_its_guards() -> None:
    assert chart.account_of(chart.prepaid(W)) == Account("prepaid:wksp_1", True)
    assert chart.account_of(chart.CASH) == Account("cash", False)
    for wrong in ("prepaid", "prepaid:", "pocket:x", ""):
        with pytest.raises(Invalid, match="chart"):
            chart.account_of(wrong)


def test_codes_are_the_listed_ones(books: AnyBooks) -> None:
    hold = three(books)
    chain = recipes.settle("s", hold, 4)[0]
    assert {transfer.code for transfer in (*hold.chain(), *chain)} <= set(recipes.CODES)
    assert {transfer.ref for transfer in (*hold.chain(), *chain)} == {"req_1"}
    assert msgspec.json.decode(msgspec.json.encode(hold), type=recipes.Hold) == hold
