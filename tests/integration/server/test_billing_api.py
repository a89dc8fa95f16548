"""Plans, rating, statements and invoices over the API."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from peers import record
from things_stage import Cloud, eventually

pytestmark = pytest.mark.integration
PRICES = {"input_per_mtok": "1.00", "output_per_mtok": "4.00", "per_request": "0.001"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("billing") / "data").running() as running:
        yield running


def month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


def served(cloud: Cloud, workspace: str, count: int, **more: Any) -> None:
    """Usage arrives from a gateway and is acknowledged."""
    id, segment = cloud.call("GET", f"/v1/workspaces/{workspace}")["id"], cloud.name("segment")
    records = [
        record(f"{segment}-{n}", workspace_id=id, prompt_tokens=1000, completion_tokens=500, t_end=time.time(), **more)
        for n in range(count)
    ]
    cloud.loop.call_soon_threadsafe(cloud.gateway.meter, segment, *records)
    eventually(lambda: segment in cloud.gateway.acks, "the segment is committed")


def current(cloud: Cloud, workspace: str) -> str:
    return str(cloud.call("GET", f"/v1/balances/{workspace}")["current"])


def test_usage_is_free_without_a_plan(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    assert cloud.call("GET", f"/v1/workspaces/{name}/plan", key=key)["plan"] is None
    served(cloud, name, 3)
    assert cloud.call("GET", f"/v1/statements?workspace={name}")["rows"] == []
    put = cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "on-demand", "prices": PRICES})
    assert (put.status, put["plan"], put["prices"]["output_per_mtok"]) == (200, "on-demand", "4.000000")
    assert cloud.call("GET", f"/v1/statements?workspace={name}")["rows"] == [], "what was before stays free"


def test_usage_is_charged_by_itself(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "10.00"})
    cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "on-demand", "prices": PRICES})
    served(cloud, name, 10)
    served(cloud, name, 5, status=500)
    # 10 x (1000 x 0.000001 + 500 x 0.000004 + 0.001) = 0.04
    eventually(lambda: current(cloud, name) == "9.960000", "ten requests are paid")
    rows = cloud.call("GET", "/v1/transactions?kind=use", key=key)["data"]
    assert {row["amount"] for row in rows} == {"-0.010000", "-0.020000"}
    assert len(rows) == 3
    assert rows[0]["balance_after"] is None
    assert cloud.call("GET", "/v1/transactions", key=key)["data"][0]["balance_after"] == "9.960000"
    assert cloud.call("DELETE", f"/v1/workspaces/{name}/plan")["plan"] is None
    served(cloud, name, 1)
    cloud.call("GET", f"/v1/statements?workspace={name}")
    assert current(cloud, name) == "9.960000"


def test_what_cannot_be_paid_stops_nobody(cloud: Cloud) -> None:
    name, _ = cloud.workspace()
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "0.005"})
    cloud.make(f"/v1/balances/{name}/overage_limit", {"amount": "0.01"})
    cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "on-demand", "prices": PRICES})
    served(cloud, name, 10)
    eventually(lambda: current(cloud, name) == "-0.010000", "the line is used up")
    used = cloud.call("POST", f"/v1/balances/{name}/overage_limit", {"amount": "0.00"})
    assert (used.status, used.error["type"]) == (409, "conflict")


def test_plans(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    path = f"/v1/workspaces/{name}/plan"
    by_sku = {"plan": "on-demand", "by_instance_sku": {"cpu": {"per_node_minute": "0.02"}}}
    assert cloud.call("PUT", path, by_sku)["by_instance_sku"]["isku_cpu"]["per_node_minute"] == "0.020000"
    shared = cloud.call("PUT", path, {"plan": "subsidised", "prices": PRICES, "billing_rate_bps": 2500})
    assert shared["billing_rate_bps"] == 2500
    spot = cloud.call("PUT", path, {"plan": "spot", "prices": PRICES})
    assert "market_cost" in [charge["meter"] for charge in spot["charges"]]
    assert cloud.call("PUT", path, {"plan": "spot"}, key=key).status == 403
    for body, field in (
        ({"plan": "free"}, "plan"),
        ({"plan": "on-demand", "prices": {"input_per_mtok": "-1.0"}}, "prices.input_per_mtok"),
        ({"plan": "on-demand", "billing_rate_bps": 1}, "billing_rate_bps"),
        ({"plan": "on-demand", "by_instance_sku": {"nothing": {}}}, "by_instance_sku"),
        ({"plan": "on-demand", "price": {}}, "price"),
    ):
        refused = cloud.call("PUT", path, body)
        assert (refused.status, refused.error["details"][0]["field"]) == (422, field)


def test_a_subsidy_pays_its_share(cloud: Cloud) -> None:
    name, _ = cloud.workspace()
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "1.00"})
    cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "subsidised", "prices": PRICES, "billing_rate_bps": 2500})
    served(cloud, name, 10)
    eventually(lambda: current(cloud, name) == "0.990000", "a quarter of 0.04 is the customer's")
    made = cloud.make("/v1/invoices", {"month": month(), "workspace": name})
    assert (made["fees"], made["deducted"], made["prepaid"], made["exact_due"]) == (40_000, 30_000, 10_000, 0)


class Outline(HTMLParser):
    """Checks that tags are closed in order, and notes what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "onload")]
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: bytes) -> Outline:
    found = Outline()
    found.feed(page.decode())
    found.close()
    assert found.open == []
    assert found.loads == []
    return found


def test_statements(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "2.00", "reference": "<b>wire</b>"})
    cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "on-demand", "prices": PRICES})
    served(cloud, name, 2)
    made = cloud.call("GET", f"/v1/statements?month={month()}", key=key)
    assert (made["opening"], made["closing"]) == (0, 2_000_000 - 8_000)
    assert sum(row["amount"] for row in made["rows"]) == made["closing"]
    status, data, fields = cloud.raw("GET", f"/v1/statements?month={month()}&format=csv", key=key)
    assert (status, fields["content-type"].partition(";")[0]) == (200, "text/csv")
    rows = list(csv.reader(io.StringIO(data.decode())))
    assert len(rows) == 3 + len(made["rows"])
    assert rows[-1][-1] == str(made["closing"])
    page, html, fields = cloud.raw(
        "GET", "/v1/statements", key=key, headers={"Accept": "text/html, application/json;q=0.5"}
    )
    assert (page, fields["content-type"].partition(";")[0]) == (200, "text/html")
    assert "<b>wire" not in html.decode()
    assert "<b>wire</b>" in outline(html).text
    empty = cloud.call("GET", "/v1/statements?month=2020-01", key=key)
    assert (empty["opening"], empty["closing"], empty["rows"]) == (0, 0, [])
    assert cloud.call("GET", "/v1/statements?account=receivable", key=key)["rows"] == []
    for wrong in ("month=2026-13", "month=yesterday", "format=pdf", "account=cash"):
        assert cloud.call("GET", f"/v1/statements?{wrong}", key=key).status == 422


def test_invoices(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "0.01"})
    cloud.make(f"/v1/balances/{name}/overage_limit", {"amount": "5.00"})
    cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "on-demand", "prices": PRICES})
    served(cloud, name, 10)
    made = cloud.make("/v1/invoices", {"month": month(), "workspace": name, "tax_bps": 1900})
    assert (made.status, made["status"], made["number"]) == (201, "draft", None)
    assert {line["meter"]: (line["quantity"], line["amount"]) for line in made["lines"]} == {
        "input_tokens": (10_000, 10_000), "output_tokens": (5_000, 20_000), "requests": (10, 10_000),
    }  # fmt: skip
    assert (made["fees"], made["tax"], made["prepaid"]) == (40_000, 7_600, 10_000)
    assert (made["exact_due"], made["total_cents"], made["total"]) == (37_600, 4, "0.040000")
    served(cloud, name, 10)
    newer = cloud.make("/v1/invoices", {"month": month(), "workspace": name})
    assert (newer["id"], newer["fees"], newer["tax"]) == (made["id"], 80_000, 0)
    listed = cloud.call("GET", "/v1/invoices", key=key)["data"]
    assert [row["id"] for row in listed] == [made["id"]]
    assert "lines" not in listed[0]
    early = cloud.call("POST", f"/v1/invoices/{made['id']}/finalize")
    assert (early.status, early.error["type"]) == (409, "conflict")
    assert cloud.call("GET", f"/v1/invoices/{made['id']}", key=key)["fees"] == 80_000
    _, data, _ = cloud.raw("GET", f"/v1/invoices/{made['id']}?format=csv", key=key)
    assert len(list(csv.reader(io.StringIO(data.decode())))) > 4
    _, html, _ = cloud.raw("GET", f"/v1/invoices/{made['id']}?format=html", key=key)
    assert "Draft invoice" in outline(html).text
    assert "@media print" in html.decode()
    _, text, fields = cloud.raw("GET", f"/v1/invoices/{made['id']}", key=key, headers={"Accept": "*/*"})
    assert (json.loads(text)["id"], fields["content-type"]) == (made["id"], "application/json")


def test_an_invoice_becomes_final_and_void(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    body = {"month": "2026-01", "workspace": name}
    made = cloud.make("/v1/invoices", body)
    assert (made["lines"], made["total_cents"]) == ([], 0)
    final = cloud.call("POST", f"/v1/invoices/{made['id']}/finalize")
    assert (final.status, final["status"]) == (200, "finalized")
    assert final["number"] >= 1
    assert cloud.call("POST", f"/v1/invoices/{made['id']}/finalize")["number"] == final["number"]
    again = cloud.call("POST", "/v1/invoices", body)
    assert (again.status, again.error["type"]) == (409, "conflict")
    assert "void" in again.error["message"]
    assert cloud.call("POST", f"/v1/invoices/{made['id']}/void")["status"] == "voided"
    second = cloud.make("/v1/invoices", body)
    assert second["id"] != made["id"]
    assert cloud.call("POST", f"/v1/invoices/{second['id']}/finalize")["number"] == final["number"] + 1
    for verb in ("finalize", "void"):
        assert cloud.call("POST", f"/v1/invoices/{second['id']}/{verb}", key=key).status == 403
    _, other = cloud.workspace()
    assert cloud.call("GET", f"/v1/invoices/{second['id']}", key=other).status == 404
    assert cloud.call("GET", "/v1/invoices/inv_none").status == 404
    assert cloud.call("POST", "/v1/invoices", {"month": "2026-1"}).status == 422
    assert cloud.call("POST", "/v1/invoices", {"month": "2026-01"}, key=key).status == 403


def test_a_month_from_usage_to_payment_due(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Market time, usage, tax and rounding of a whole month on one invoice, checked against the ledger."""
    with Cloud(tmp_path_factory.mktemp("month") / "data", "--test-clock").running() as cloud:
        now = cloud.call("GET", "/v1/test_clock")["now_at"]
        this_month = time.strftime("%Y-%m", time.gmtime(now))
        name, key = cloud.workspace()
        cloud.make(f"/v1/balances/{name}/top_up", {"amount": "0.50"})
        cloud.make(f"/v1/balances/{name}/overage_limit", {"amount": "100.00"})
        cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "spot", "prices": PRICES})
        floor = {"floor_price_dollars_per_node_hour": "0.60"}
        offer = cloud.call("GET", "/v1/offers")["data"][0]
        assert cloud.call("PATCH", f"/v1/offers/{offer['id']}", floor).status == 200
        start = (now // 60 + 10) * 60
        order = {
            "capacity": "default", "side": "buy", "instance_sku": "isku_cpu",
            "allocation_schedule_delta": [{"start_at": start, "end_at": start + 3600, "node_count": 2}],
            "limit_price_dollars_per_node_hour": "0.60",
        }  # fmt: skip
        bought = cloud.call("POST", "/v1/orders", order, key=key)
        assert (bought.status, bought["status"]) == (201, "filled"), bought.body
        served(cloud, name, 7)
        # 1.20 for the nodes, 7 x 0.004 for the requests: 1.228, of which 0.50 was prepaid; 19 % tax
        draft = cloud.make("/v1/invoices", {"month": this_month, "workspace": name, "tax_bps": 1900})
        assert {line["description"]: line["amount"] for line in draft["lines"]} == {
            "Market orders": 1_200_000, "Requests": 7_000, "Input tokens": 7_000, "Output tokens": 14_000,
        }  # fmt: skip
        # With nothing on offer and nobody running there is little to do in the rest of the month.
        assert cloud.call("PATCH", f"/v1/offers/{offer['id']}", {"enabled": False}).status == 200
        for day in range(2, 34, 4):
            assert cloud.call("POST", "/v1/test_clock", {"to_at": now + day * 86_400}).status == 200
        final = cloud.call("POST", f"/v1/invoices/{draft['id']}/finalize")
        assert (final.status, final["fees"], final["tax"], final["prepaid"]) == (200, 1_228_000, 233_320, 500_000)
        assert (final["exact_due"], final["rounding"], final["total"]) == (961_320, -1_320, "0.960000")
        owed = cloud.call("GET", f"/v1/balances/{name}")
        assert owed["current"] == "-0.960000", "what the workspace owes is what the invoice says"
        closing = cloud.call("GET", f"/v1/statements?account=receivable&month={this_month}", key=key)["closing"]
        assert closing == -728_000, "tax and rounding came when the month was over"
        cloud.call("POST", f"/v1/invoices/{draft['id']}/void")
        assert cloud.call("GET", f"/v1/balances/{name}")["current"] == "-0.728000"


def test_a_final_invoice_is_paid(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In two parts; the credit line is afterwards what it was, though tax was paid, too."""
    with Cloud(tmp_path_factory.mktemp("paid") / "data", "--test-clock").running() as cloud:
        now = cloud.call("GET", "/v1/test_clock")["now_at"]
        name, key = cloud.workspace()
        cloud.make(f"/v1/balances/{name}/overage_limit", {"amount": "100.00"})
        cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "spot", "prices": PRICES})
        served(cloud, name, 100)
        wish = {"month": time.strftime("%Y-%m", time.gmtime(now)), "workspace": name, "tax_bps": 1900}
        path = f"/v1/invoices/{cloud.make('/v1/invoices', wish)['id']}"
        assert cloud.call("POST", f"{path}/pay", {}).status == 409, "a draft is not paid"
        offer = cloud.call("GET", "/v1/offers")["data"][0]
        assert cloud.call("PATCH", f"/v1/offers/{offer['id']}", {"enabled": False}).status == 200
        for day in range(2, 34, 4):
            assert cloud.call("POST", "/v1/test_clock", {"to_at": now + day * 86_400}).status == 200
        # 100 x 0.004, and 19 % tax
        final = cloud.call("POST", f"{path}/finalize")
        assert (final["total"], final["paid"], final["paid_at"]) == ("0.480000", 0, None)
        assert cloud.call("POST", f"{path}/pay", {}, key=key).status == 403
        for amount in ("0.00", "0.49", "-1.00"):
            refused = cloud.call("POST", f"{path}/pay", {"amount": amount})
            assert (refused.status, refused.error["details"][0]["field"]) == (422, "amount")
        once = {"Idempotency-Key": "first"}
        for status in (201, 200):
            part = cloud.call("POST", f"{path}/pay", {"amount": "0.30", "reference": "wire 1"}, headers=once)
            assert (part.status, part["status"], part["paid"]) == (status, "finalized", 300_000)
        assert current(cloud, name) == "-0.180000"
        done = cloud.call("POST", f"{path}/pay", {})
        assert (done.status, done["status"], done["paid"]) == (201, "paid", 480_000)
        assert done["paid_at"] == int(cloud.call("GET", "/v1/test_clock")["now_at"])
        shown = cloud.call("GET", f"/v1/balances/{name}")
        assert (shown["current"], shown["overage_limit"]) == ("0.000000", "100.000000")
        assert [cloud.call("POST", f"{path}/{verb}", {}).status for verb in ("pay", "void")] == [409, 409]
        assert cloud.call("GET", path)["status"] == "paid"
        rows = cloud.call("GET", "/v1/transactions?kind=payment", key=key)["data"]
        assert [row["amount"] for row in rows] == ["0.180000", "0.300000"]


def test_killed_while_it_rates_it_charges_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Cloud(tmp_path_factory.mktemp("killed") / "data").running() as cloud:
        name, _ = cloud.workspace()
        cloud.make(f"/v1/balances/{name}/top_up", {"amount": "100.00"})
        cloud.call("PUT", f"/v1/workspaces/{name}/plan", {"plan": "on-demand", "prices": PRICES})
        for pause_s in (0.0, 0.5, 0.9):
            served(cloud, name, 1500)
            time.sleep(pause_s)
            cloud.server.kill()
            cloud.server.start()
        # 4500 x 0.004
        eventually(lambda: current(cloud, name) == "82.000000", "all of it is paid")
        time.sleep(1.5)
        assert current(cloud, name) == "82.000000"
        rows = cloud.call("GET", f"/v1/usage?workspace={cloud.call('GET', f'/v1/workspaces/{name}')['id']}")
        assert rows["total"]["requests"] == 4500
