"""Random business on one ledger: whatever happens, the books hold.

Debits equal credits, pending and posted; guarded accounts never fall below zero; nothing is created twice; a hold that
runs out returns its amount; an invoice's lines are the sum of their transfers.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nanopod.ledger import chart, funding, orders, recipes
from nanopod.ledger.books import Ledger, check, open_accounts, post
from nanopod.ledger.funding import Source, in_order, split
from nanopod.ledger.invoices import Invoice, check_lines, concerning, draft, final_postings, finalize
from nanopod.ledger.recipes import Chain, Hold
from nanopod.ledger.statements import month_bounds, statement
from nanopod.ledger.transfers import Outcome, Result, verdict
from nanopod.model.errors import PaymentRequired

START, END = month_bounds("2026-07")
SKU = "isku_1"
REVENUE = chart.revenue(SKU)
S = 1_000_000
WORKSPACES = st.sampled_from(["w1", "w2"])
AMOUNTS = st.integers(1, 500)


class Business(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.now_us = START
        self.number = 0
        self.holds: dict[str, tuple[Hold, int | None]] = {}
        """By workspace and key: the hold and when it runs out."""
        self.sent: list[Chain] = []
        self.outside = 0
        """What came in from outside less what went out."""
        self.undelivered: list[tuple[str, int, int, int]] = []

    # --- help ---

    def key(self) -> str:
        self.number += 1
        return f"k{self.number}"

    def post(self, chain: Chain) -> tuple[Result, ...]:
        self.ledger = open_accounts(self.ledger, chart.accounts_of(chain))
        before = self.ledger.seq
        self.ledger, results = post(self.ledger, chain, self.now_us)
        created = sum(result.outcome is Outcome.CREATED for result in results)
        assert self.ledger.seq == before + created
        assert created in (0, len(chain)), "all or none"
        self.sent.append(chain)
        return results

    def good(self, chain: Chain) -> bool:
        return bool(chain) and verdict(self.post(chain)) is Outcome.CREATED

    def left(self, account_id: str) -> int:
        account = self.ledger.account(account_id)
        return account.available if account else 0

    def balance(self, account_id: str) -> int:
        account = self.ledger.account(account_id)
        return account.balance if account else 0

    def sources(self, workspace: str, bps: int) -> tuple[Source, ...]:
        all_of_them = [
            funding.credit_line(workspace),
            funding.prepaid(workspace),
            funding.coupon(f"coupon-{workspace}", 5),
            funding.subsidy(f"grant-{workspace}", "city", bps),
        ]
        return in_order(all_of_them, self.now_us)

    # --- business ---

    @rule(workspace=WORKSPACES, amount=AMOUNTS)
    def top_up(self, workspace: str, amount: int) -> None:
        assert self.good(recipes.top_up(self.key(), workspace, amount))
        self.outside += amount

    @rule(workspace=WORKSPACES, amount=AMOUNTS)
    def pay_back(self, workspace: str, amount: int) -> None:
        can = self.left(chart.prepaid(workspace)) >= amount
        assert self.good(recipes.pay_back(self.key(), workspace, amount)) == can
        self.outside -= amount if can else 0

    @rule(workspace=WORKSPACES, change=st.integers(-200, 400).filter(bool))
    def set_line(self, workspace: str, change: int) -> None:
        can = change > 0 or self.left(chart.credit_line(workspace)) >= -change
        assert self.good(recipes.set_line(self.key(), workspace, change)) == can

    @rule(workspace=WORKSPACES, amount=AMOUNTS, kind=st.sampled_from(["grant", "coupon"]))
    def issue(self, workspace: str, amount: int, kind: str) -> None:
        assert self.good(recipes.issue_grant(self.key(), f"{kind}-{workspace}", amount))

    @rule(workspace=WORKSPACES, kind=st.sampled_from(["grant", "coupon"]))
    def expire_grant(self, workspace: str, kind: str) -> None:
        assert self.good(recipes.expire_grant(self.key(), f"{kind}-{workspace}"))
        assert self.left(chart.grant(f"{kind}-{workspace}")) == 0

    @rule(workspace=WORKSPACES, amount=AMOUNTS, bps=st.sampled_from([0, 3_333, 10_000]))
    def charge(self, workspace: str, amount: int, bps: int) -> None:
        revenue, owed = self.balance(REVENUE), self.balance(chart.supplier_payable("owner"))
        key = self.key()
        try:
            parts = split(amount, self.sources(workspace, bps), self.left)
        except PaymentRequired:
            return
        chain = recipes.together(
            recipes.use(key, parts, REVENUE, f"{workspace}/{key}"), recipes.supply(key, SKU, "owner", amount)
        )
        assert self.good(chain)
        assert self.balance(REVENUE) == revenue + amount
        assert self.balance(chart.supplier_payable("owner")) == owed + amount, "the owner is paid whoever pays"

    @rule(workspace=WORKSPACES, amount=AMOUNTS, bps=st.sampled_from([0, 3_333, 10_000]), timeout_s=st.integers(0, 9))
    def hold(self, workspace: str, amount: int, bps: int, timeout_s: int) -> None:
        key = self.key()
        try:
            parts = split(amount, self.sources(workspace, bps), self.left)
        except PaymentRequired:
            return
        hold = Hold(key, REVENUE, parts, f"{workspace}/{key}", timeout_s)
        assert self.good(hold.chain())
        self.holds[key] = hold, self.now_us + timeout_s * S if timeout_s else None

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), over=st.integers(0, 20))
    def settle(self, data: st.DataObject, over: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.holds)))
        hold, until = self.holds.pop(key)
        used = data.draw(st.integers(0, hold.amount)) + (over if over > 15 else 0)
        revenue = self.balance(REVENUE)
        chain, beyond = recipes.settle(self.key(), hold, used)
        ended = until is not None and until <= self.now_us
        assert self.good(chain) == (not ended)
        if not ended:
            assert self.balance(REVENUE) == revenue + used - beyond
            assert beyond == max(0, used - hold.amount)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.holds)))
        hold, until = self.holds.pop(key)
        used = data.draw(st.integers(0, hold.amount))
        fresh = recipes.rest(self.key(), hold, used, data.draw(st.integers(0, hold.amount - used)), 5)
        ended = until is not None and until <= self.now_us
        assert self.good(recipes.renew(self.key(), hold, used, fresh)) == (not ended)
        if not ended and fresh.parts:
            self.holds[fresh.key] = fresh, self.now_us + 5 * S

    @rule(workspace=WORKSPACES, seller=st.sampled_from(["w1", "w2", "provider"]), amount=AMOUNTS, data=st.data())
    def order(self, workspace: str, seller: str, amount: int, data: st.DataObject) -> None:
        if seller == workspace:
            return
        try:
            parts = split(amount, [funding.prepaid(workspace), funding.credit_line(workspace)], self.left)
        except PaymentRequired:
            return
        hold = orders.order_hold(self.key(), parts)
        assert self.good(hold.chain())
        paid = data.draw(st.integers(1, amount))
        fee = data.draw(st.integers(0, paid))
        keep = data.draw(st.integers(0, amount - paid))
        sold_by = orders.Seller(seller, provider=seller == "provider")
        contract = self.key()
        chain, rest = orders.fill(contract, hold, paid, fee, keep, sold_by, SKU)
        assert self.good(chain), "what is held can be bought"
        if rest is not None:
            assert rest.amount == keep
            assert self.good(recipes.release(self.key(), rest))
        if sold_by.provider:
            self.undelivered.append((contract, paid - fee, 0, 10))
        assert self.balance(chart.ORDERS) == 0

    @precondition(lambda self: self.undelivered)
    @rule(more=st.integers(1, 10))
    def deliver(self, more: int) -> None:
        contract, net, before, total = self.undelivered.pop(0)
        now = min(total, before + more)
        chain = orders.deliver(contract, "provider", net, before, now, total)
        assert not chain or self.good(chain)
        if now < total:
            self.undelivered.append((contract, net, now, total))

    @rule()
    def pay_out(self) -> None:
        for owner in ("provider", "owner"):
            owed = self.balance(chart.supplier_payable(owner))
            assert self.good(recipes.payout(self.key(), owner))
            self.outside -= max(0, owed)

    @rule(workspace=WORKSPACES, amount=AMOUNTS)
    def payment(self, workspace: str, amount: int) -> None:
        assert self.good(recipes.payment(self.key(), workspace, amount))
        self.outside += amount

    @precondition(lambda self: self.ledger.seq > 0)
    @rule(data=st.data())
    def correct(self, data: st.DataObject) -> None:
        """Undo some entry, if the money is there; money from outside is left alone to keep the count simple."""
        entries = [
            e
            for e in self.ledger.entries.values()
            if e.transfer.kind != "pending" and e.amount and chart.CASH not in (e.debit, e.credit)
            and chart.ORDERS not in (e.debit, e.credit)
        ]  # fmt: skip
        if entries:
            self.post(recipes.reverse(self.key(), data.draw(st.sampled_from(entries))))

    # --- time, and trouble ---

    @rule(s=st.integers(1, 6))
    def wait(self, s: int) -> None:
        self.now_us += s * S

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """A client sends something again."""
        chain = data.draw(st.sampled_from(self.sent))
        before = self.ledger.seq
        known = [self.ledger.entry(transfer.id) is not None for transfer in chain]
        assert all(known) or not any(known)
        self.ledger, results = post(self.ledger, chain, self.now_us)
        if any(known):
            assert self.ledger.seq == before
            assert verdict(results) is Outcome.EXISTS
        elif verdict(results) is Outcome.CREATED:
            # Only what never touched money can still be done: an outcome that burns no id.
            assert not any(self.ledger.burnt(transfer.id) for transfer in chain)

    @rule()
    def everything_expires(self) -> None:
        """After the longest timeout, only holds without one are left."""
        self.now_us += 10 * S
        self.ledger = post(self.ledger, (), self.now_us)[0]
        for key, (hold, until) in list(self.holds.items()):
            if until is not None:
                assert all(self.ledger.settlement(transfer.id) == "expired" for transfer in hold.chain())
                del self.holds[key]
        held = sum(
            account.debits_pending for account in self.ledger.accounts.values() if account.id.startswith("prepaid:")
        )
        kept = sum(
            part.amount for hold, _ in self.holds.values() for part in hold.parts if part.source.kind == "prepaid"
        )
        assert held == kept

    @rule(workspace=WORKSPACES, tax_bps=st.sampled_from([0, 1_900]))
    def bill(self, workspace: str, tax_bps: int) -> None:
        made = self.invoice(workspace, tax_bps)
        assert check_lines(made, lambda id: self.ledger.entry(int(id, 16))) == ()
        final = finalize(made, 1, END)
        assert final.exact_due + final.rounding == final.total_cents * 10_000
        assert abs(final.rounding) <= 5_000
        ledger = open_accounts(self.ledger, chart.accounts_of(final_postings(final)))
        ledger, results = post(ledger, final_postings(final), self.now_us)
        assert all(result.done for result in results)
        assert check(ledger) == ()

    def invoice(self, workspace: str, tax_bps: int = 0) -> Invoice:
        entries = concerning(self.ledger.entries.values(), workspace, [f"grant-{workspace}", f"coupon-{workspace}"])
        return draft(f"inv-{workspace}", "np", workspace, "2026-07", entries, tax_bps=tax_bps)

    # --- always ---

    @invariant()
    def the_books_hold(self) -> None:
        assert check(self.ledger) == ()
        assert -self.balance(chart.CASH) == self.outside

    @invariant()
    def statements_end_at_the_balance(self) -> None:
        account = chart.prepaid("w1")
        assert statement(account, "2026-07", 0, self.ledger.history(account)).closing == self.balance(account)


TestBusiness = Business.TestCase
TestBusiness.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
