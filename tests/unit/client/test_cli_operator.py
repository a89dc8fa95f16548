"""What an operator does from the command line: kinds of nodes, payments, money that goes back."""

from __future__ import annotations

from collections.abc import Callable

from recorded_api import Recorded

Run = Callable[..., tuple[int, str, str]]


def test_a_kind_of_node_is_deprecated(api: Recorded, run: Run) -> None:
    api.answers["PATCH /v1/instance_skus/cpu"] = {"id": "isku_1", "alias": "cpu", "lifecycle": "deprecated"}
    code, out, _ = run("instance-skus set cpu --lifecycle deprecated --audience-hint batch")
    assert (code, "deprecated" in out) == (0, True)
    assert api.sent("PATCH /v1/instance_skus/cpu") == {"lifecycle": "deprecated", "audience_hint": "batch"}
    assert run("instance-skus set cpu --lifecycle gone")[0] == 2
    code, _, err = run("instance-skus set cpu")
    assert (code, "nothing to change" in err) == (2, True)


def test_an_invoice_is_paid(api: Recorded, run: Run) -> None:
    paid = {"id": "inv_1", "status": "paid", "paid_us": 1_000_000, "total": "0.48", "currency": "USD"}
    api.answers["POST /v1/invoices/inv_1/pay"] = (201, paid)
    code, out, _ = run("billing invoices pay inv_1 --amount 0.30 --reference wire")
    assert (code, "PAID" in out) == (0, True)
    assert api.sent("POST /v1/invoices/inv_1/pay") == {"amount": "0.30", "reference": "wire"}
    assert run("billing invoices pay inv_1 --workspace research")[0] == 0
    assert api.sent("POST /v1/invoices/inv_1/pay") == {}


def test_prepaid_money_goes_back(api: Recorded, run: Run) -> None:
    api.answers["POST /v1/balances/research/pay_back"] = (201, {"id": "wksp_1", "current": "1.00"})
    assert run("billing pay-back 5.00 --workspace research")[0] == 0
    assert api.sent("POST /v1/balances/research/pay_back") == {"amount": "5.00"}
