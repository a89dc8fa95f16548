"""The command line against an API of recorded answers: what it sends, prints, asks and returns."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded_api import NOW, SKU, Recorded, listed

from nanopod import __main__ as command
from nanopod.client.cli import ALIASES, COMMANDS, agents, completion, exits, parser, show
from nanopod.model import errors

START = NOW + 3600
SCHEDULE = [{"start_at": START, "end_at": START + 86_400, "node_count": 4}]
ORDER = {
    "id": "ordr_1", "object": "order", "side": "buy", "status": "filled", "capacity": {"id": "cap_1", "name": "dev"},
    "pool": {"id": "cap_1", "name": "dev"}, "instance_sku": {"id": "isku_1", "name": "h100"},
    "allocation_schedule_delta": SCHEDULE, "filled_allocation_schedule_delta": SCHEDULE,
    "limit_price_dollars_per_node_hour": "19.999980", "requested_limit_price": "20.00", "hold": "0.000000",
    "total": "1919.998080", "fills": [{"contract": "cont_1", "filled_at": NOW, "allocation_schedule_delta": SCHEDULE,
    "price_dollars_per_node_hour": "19.999980"}], "created_at": NOW, "cancel_reason": None,
}  # fmt: skip


Run = Callable[..., tuple[int, str, str]]


# --- orders ---


def test_an_order_is_sent_as_typed_and_echoed(api: Recorded, run: Run) -> None:
    api.answers["POST /v1/orders"] = (201, ORDER)
    code, out, err = run("orders create --side buy --nodes 4 --start 'in 1h' --duration 24h --max-rate 20.00 --utc")
    assert code == 0, err
    assert api.sent("POST /v1/orders") == {
        "capacity": "cap_1", "side": "buy", "instance_sku": "isku_1", "allocation_schedule_delta": SCHEDULE,
        "limit_price_dollars_per_node_hour": "20.00",
    }  # fmt: skip
    assert "limit 19.999980 $/node-hour (you typed 20.00; step 0.000060)" in out
    assert "total at most $1,919.998080, hold $1,919.998080" in out
    assert "using the only capacity: dev" in err and "using the only instance SKU: h100" in err
    card = [line for line in out.splitlines() if line.startswith("|")]
    assert card[:3] == ["| ORDER ID      ordr_1", "| SIDE          buy", "| STATUS        filled"]
    assert "| PERIOD        Mar 15, 1:00am -> Mar 16, 1:00am UTC" in out
    headers = next(fields for word, _, _, fields in api.asked if word == "POST /v1/orders")
    assert len(headers["Idempotency-Key"]) >= 16 and headers["Authorization"] == "Bearer sk_test"


def test_now_is_the_next_block_of_the_clusters_clock_and_moves_are_said(api: Recorded, run: Run) -> None:
    api.answers["POST /v1/orders"] = (201, ORDER)
    assert run("orders create --side buy --duration 90m --max-rate 1.0")[0] == 0
    entry = api.sent("POST /v1/orders")["allocation_schedule_delta"][0]
    assert entry == {"start_at": NOW + 60, "end_at": NOW + 60 + 5400, "node_count": 1}
    code, _, err = run(f"orders create --side buy --start {START + 1} --stop {START + 7199} --max-rate 1.0 --utc")
    assert code == 0 and "--start moved to Mar 15, 1:01am UTC" in err and "--stop moved to Mar 15, 3:00am UTC" in err


def test_a_total_becomes_a_rate_rounded_down(api: Recorded, run: Run) -> None:
    api.answers["POST /v1/orders"] = (201, ORDER)
    code, _, err = run("orders create --side buy --nodes 4 --duration 24h --max-price 500.00")
    assert code == 0 and "rounded down so that the total cannot exceed it" in err
    rate = api.sent("POST /v1/orders")["limit_price_dollars_per_node_hour"]
    assert float(rate) * 96 <= 500 < (float(rate) + 0.00006) * 96


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--side buy --max-rate 1.0", "give --duration or --stop"),
        ("--side buy --duration 1h --stop tomorrow --max-rate 1.0", "not both"),
        ("--side buy --duration 1 --max-rate 1.0", "is no duration"),
        ("--side buy --start someday --duration 1h --max-rate 1.0", "is no time"),
        ("--side buy --duration 1h --min-rate 1.0", "--min-rate is for selling"),
        ("--side sell --duration 1h --max-rate 1.0", "--max-rate and --max-price are for buying"),
        ("--side buy --duration 1h --max-rate cheap", "is no price"),
        ("--side buy --duration 1h --max-rate 1.0 --max-price 2.0", "not both"),
        ("--side buy --duration 1h --max-rate 1.0 --nodes 0", "must be 1 or more"),
        ("--side buy --start 'in -1h' --duration 2h --max-rate 1.0", "which is past; the first is"),
        ("--side buy --start tomorrow --stop now --max-rate 1.0", "not after the start"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_sent(api: Recorded, run: Run, line: str, told: str) -> None:
    code, out, err = run(f"orders create {line}")
    assert code == 2 and told in err and not out
    assert not [word for word, *_ in api.asked if word.startswith("POST")]
    code, out, err = run(f"orders create {line} --json")
    found = json.loads(out)["error"]
    assert code == 2 and found["type"] == "unprocessable_entity" and told in found["message"] and not err


QUOTED = {
    "type": "quoted", "fee": {"flat_dollars_per_node_hour": "0.000000", "percentage_bps": 150}, "notices": [],
    "estimated_total": "96.000000", "estimated_average": "1.000020",
    "post_order_body": {
        "capacity": "cap_1", "side": "buy", "instance_sku": "isku_1", "allocation_schedule_delta": SCHEDULE,
        "limit_price_dollars_per_node_hour": "1.200000", "allow_standing": False, "allow_partial": False,
    },
}  # fmt: skip


def test_without_a_limit_the_preview_is_shown_and_its_body_posted_only_with_a_yes(api: Recorded, run: Run) -> None:
    api.answers["POST /v1/order_preview"] = QUOTED
    api.answers["GET /v1/instance_skus/isku_1"] = SKU
    api.answers["POST /v1/orders"] = (201, ORDER)
    code, out, err = run("buy --count 4 --duration 24h")
    assert code == 2 and "TOTAL         $96.000000" in out and "-y (take the preview above)" in err
    assert "HOLD          $115.200000" in out and "0.000000 $/node-hour + 1.5% (the seller pays)" in out
    assert run("buy --count 4 --duration 24h -y")[0] == 0
    assert api.sent("POST /v1/orders") == QUOTED["post_order_body"]
    assert run("buy --count 4 --duration 24h --quote --json")[:2] == (0, json.dumps(QUOTED, indent=2) + "\n")
    api.answers["POST /v1/order_preview"] = {"type": "unavailable", "reason": "no_availability", "fee": {}}
    code, _, err = run("sell --count 4 --duration 24h -y")
    assert code == exits_of("did not fill") and "--min-rate R --allow-standing" in err


def exits_of(meaning: str) -> int:
    return next(code for code, text in exits.MEANINGS.items() if meaning in text)


def test_an_order_that_did_not_fill_is_7_and_one_that_is_pending_is_waited_for(api: Recorded, run: Run) -> None:
    unfilled = {**ORDER, "status": "cancelled", "cancel_reason": "unfilled", "fills": [],
                "filled_allocation_schedule_delta": []}  # fmt: skip
    line = "orders create --side buy --capacity dev --instance-sku h100 --duration 1h --max-rate 1.0"
    api.answers["POST /v1/orders"] = (201, unfilled)
    code, out, err = run(line)
    assert code == 7 and "cancelled (unfilled)" in out and "it did not fill (unfilled)" in err
    assert run(line + " --json")[1] == json.dumps(unfilled, indent=2) + "\n"
    api.answers["POST /v1/orders"] = (201, {**ORDER, "status": "pending", "fills": []})
    api.answers["GET /v1/orders/ordr_1"] = [{**ORDER, "status": "pending", "fills": []}, ORDER]
    assert run(line)[0] == 0 and len([1 for word, *_ in api.asked if word == "GET /v1/orders/ordr_1"]) == 2
    code, out, err = run(line + " --no-wait")
    assert code == 0 and "still pending and stays listed" in err
    api.answers["POST /v1/orders"] = (201, {**ORDER, "status": "cancelled"})
    code, _, err = run(line)
    assert code == 0 and "filled in part" in err


def test_a_sell_says_the_fee_that_the_preview_names(api: Recorded, run: Run) -> None:
    api.answers["POST /v1/order_preview"] = {
        **QUOTED,
        "fee": {"flat_dollars_per_node_hour": "0.06", "percentage_bps": 100},
    }
    api.answers["POST /v1/orders"] = (201, {**ORDER, "side": "sell"})
    code, out, _ = run("sell --count 2 --duration 1h --min-rate 3.00")
    assert code == 0 and "total at least $6.000000, hold 0, fee $0.180000 (you pay)" in out


def test_a_sale_without_a_length_is_of_what_is_held(api: Recorded, run: Run) -> None:
    def held(*entries: tuple[int, int, int]) -> dict[str, Any]:
        schedule = [{"start_at": NOW + a, "end_at": NOW + b, "node_count": n} for a, b, n in entries]
        return {"id": "cap_1", "name": "dev", "allocation_schedule": {"by_instance_sku": {"isku_1": schedule}}}

    api.answers["GET /v1/instance_skus/isku_1"] = SKU
    api.answers["POST /v1/orders"] = (201, {**ORDER, "side": "sell"})
    api.answers["GET /v1/capacities/cap_1"] = held((0, 3600, 4), (3600, 7200, 6), (7200, 9000, 2), (9000, 9600, 4))
    code, _, err = run("sell --count 4 --min-rate 1.50 --utc")
    assert code == 0 and "selling what dev holds: Mar 15, 12:01am -> 2:00am UTC" in err
    entry = {"start_at": NOW + 60, "end_at": NOW + 7200, "node_count": 4}
    assert api.sent("POST /v1/orders")["allocation_schedule_delta"] == [entry]
    assert run("sell --count 4 --min-rate 1.50 --start 'in 150m'")[0] == 0
    assert api.sent("POST /v1/orders")["allocation_schedule_delta"][0]["end_at"] == NOW + 9600
    for line in ("--count 7", "--count 4 --start 'in 125m'"):
        code, _, err = run(f"sell {line} --min-rate 1.50")
        assert code == 2 and "does not hold" in err, line
    api.answers["GET /v1/capacities/cap_1"] = held((86_400, 90_000, 4))
    assert run("sell --count 4 --min-rate 1.50")[0] == 0
    assert api.sent("POST /v1/orders")["allocation_schedule_delta"][0]["start_at"] == NOW + 86_400


def test_requirements_narrow_the_kinds_to_take(api: Recorded, run: Run) -> None:
    api.answers["POST /v1/orders"] = (201, ORDER)
    line = "orders create --side buy --duration 1h --require accelerator=H100,H200 --require region=local"
    assert run(f"{line} --max-rate 1.0")[0] == 0
    assert api.query("GET /v1/instance_skus")["requirements"] == ["accelerator:H100,H200;region:local"]
    api.answers["POST /v1/order_preview"] = QUOTED
    api.answers["GET /v1/instance_skus/isku_1"] = SKU
    assert run(f"{line} --instance-sku h100 -y")[0] == 0
    assert api.sent("POST /v1/order_preview") == {
        "side": "buy", "start_at": NOW + 60, "duration_seconds": 3600, "node_count": 1, "capacity": "cap_1",
        "requirements": "accelerator:H100,H200;region:local;instance_sku:h100",
    }  # fmt: skip


# --- pickers, errors, output ---


def test_several_choices_and_nobody_to_ask_is_a_usage_error(api: Recorded, run: Run) -> None:
    api.answers["GET /v1/capacities"] = listed({"id": "cap_1", "name": "a"}, {"id": "cap_2", "name": "b"})
    code, _, err = run("orders create --side buy --duration 1h --max-rate 1.0")
    assert code == 2 and "--capacity is needed: there are several (a, b)" in err
    api.answers["GET /v1/capacities"] = listed()
    code, _, err = run("orders create --side buy --duration 1h --max-rate 1.0")
    assert code == 2 and "nanopod capacities create" in err


def test_on_a_terminal_a_person_picks_and_confirms(api: Recorded, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    api.answers["GET /v1/capacities"] = listed({"id": "cap_1", "name": "a"}, {"id": "cap_2", "name": "b"})
    api.answers["POST /v1/orders"] = (201, ORDER)
    line = "orders create --side buy --duration 1h --max-rate 1.0"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal("2\ny\n"))
    code, _, err = run(line)
    assert code == 0 and "  1) a\n  2) b\n" in err and "Place this order? [y/N]" in err
    assert api.sent("POST /v1/orders")["capacity"] == "cap_2"
    monkeypatch.setattr(sys, "stdin", Terminal("b\nno\n"))
    code, _, err = run(line)
    assert code == 1 and "nothing was done" in err
    monkeypatch.setattr(sys, "stdin", Terminal("2\ny\n"))
    assert run(line + " --no-input")[0] == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 2), (401, 4), (402, 5), (403, 4), (404, 3), (409, 6), (422, 2), (410, 1), (500, 1)],
)
def test_exit_codes_and_errors_as_the_api_sent_them(api: Recorded, run: Run, status: int, code: int) -> None:
    body = {"error": {"type": "a_type", "message": "what is wrong", "details": [
        {"field": "name", "code": "x", "message": "because"}]}}  # fmt: skip
    api.answers["POST /v1/capacities"] = (status, body)
    found, out, err = run("capacities create --name dev")
    assert found == code and not out and err.startswith("nanopod capacities create: ") and "name: because" in err
    found, out, err = run("capacities create --name dev -o json")
    assert (found, json.loads(out), err) == (code, body, "")


def test_every_class_of_error_has_an_exit_code() -> None:
    for cls in errors.by_code().values():
        assert exits.status_of(cls("x")) in exits.MEANINGS
    assert exits.status_of(errors.PaymentRequired("x")) == 5 and exits.status_of(errors.Conflict("x")) == 6


def test_json_is_exactly_the_api_object(api: Recorded, run: Run) -> None:
    page = {"object": "list", "cursor": "ordr_1", "has_more": True, "data": [ORDER], "extra": {"a": 1}}
    api.answers["GET /v1/orders"] = page
    code, out, _ = run("orders list --json --status filled --status standing --capacity dev --limit 1")
    assert code == 0 and json.loads(out) == page
    assert api.query("GET /v1/orders") == {"status": ["filled", "standing"], "capacity": ["dev"], "limit": ["1"]}
    code, out, err = run("orders list --limit 1 --utc")
    assert out.splitlines()[0].split("  ")[0] == "ORDER ID" and "--starting-after ordr_1" in err
    api.answers["GET /v1/orders/ordr_1"] = ORDER
    assert json.loads(run("orders get ordr_1 --json")[1]) == ORDER


def test_people_see_all_pages(api: Recorded, run: Run) -> None:
    rows = [{**ORDER, "id": f"ordr_{n}"} for n in range(3)]
    api.answers["GET /v1/orders"] = [
        {"object": "list", "cursor": "c1", "has_more": True, "data": rows[:2]}, listed(rows[2]),
    ]  # fmt: skip
    assert [line.split()[0] for line in run("orders list")[1].splitlines()] == ["ORDER", "ordr_0", "ordr_1", "ordr_2"]
    assert api.query("GET /v1/orders")["starting_after"] == ["c1"]


def test_a_card_has_a_rail_and_leaves_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_card([("ID", "x"), ("LONG NAME", "a\nb"), ("NOTHING", None), ("NONE", []), ("ZERO", 0)])
    assert capsys.readouterr().out.splitlines() == [
        "| ID         x", "| LONG NAME  a", "|            b", "| ZERO       0",
    ]  # fmt: skip


def test_a_capacity_in_full(api: Recorded, run: Run) -> None:
    api.answers["GET /v1/capacities/dev"] = {
        "id": "cap_1", "object": "capacity", "name": "dev", "kind": "market", "tags": {"team": "x"},
        "allocation_schedule": {"total": SCHEDULE, "by_instance_sku": {"isku_1": SCHEDULE}}, "procurements": [{"id": "proc_1", "name": "p"}], "deployments": [],
    }  # fmt: skip
    code, out, _ = run("pools get dev --verbose --utc")
    assert code == 0
    line = "     4 nodes  Mar 15, 1:00am -> Mar 16, 1:00am UTC"
    assert out.splitlines()[-5:] == ["h100", line, "", "TOTAL SCHEDULE", line]
    assert "| TAGS          team=x" in out and "| PROCUREMENTS  p" in out


def test_keys_and_tokens_are_the_same_in_other_columns(api: Recorded, run: Run) -> None:
    api.answers["GET /v1/keys"] = listed({"id": "abc", "name": "ci", "scopes": ["call"], "created_at": NOW})
    assert run("keys list --utc")[1].splitlines()[0].split()[:3] == ["ID", "NAME", "SCOPES"]
    lines = [line.split() for line in run("tokens list --utc")[1].splitlines()]
    assert lines[0] == ["NAME", "SUFFIX", "CREATED", "LAST", "USED", "EXPIRES"] and lines[1][:2] == ["ci", "abc"]
    api.answers["POST /v1/keys"] = (201, {"id": "abc", "key": "sk_np_secret"})
    assert run("tokens create --name ci --role call --expires 90d")[1] == "sk_np_secret\n"
    assert api.sent("POST /v1/keys") == {"name": "ci", "scopes": ["call"], "expires_in_s": 7_776_000.0}
    for line in ("tokens create", "tokens create a --name b", "tokens create a --expires 90d --no-expire"):
        assert run(line)[0] == 2


def test_setting_sends_only_what_was_given(api: Recorded, run: Run) -> None:
    api.answers["PATCH /v1/procurements/inference"] = {"id": "proc_1", "name": "inference", "status": {"state": "info"}}
    assert run("procurements set inference --target 3 --disable --window 2h")[0] == 0
    assert api.sent("PATCH /v1/procurements/inference") == {
        "target": 3, "enabled": False, "managed_window_minutes": 120,
    }  # fmt: skip
    code, _, err = run("procurements set inference")
    assert code == 2 and "nothing to change" in err
    for line in ("--target some", "--window 90s", "--max-buy-price x"):
        assert run(f"procurements set inference {line}")[0] == 2


def test_the_quick_start_as_it_is_typed(
    api: Recorded, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "startup.sh").write_text("#!/bin/sh\necho hi\n")
    for noun in ("capacities", "instance_templates", "deployments", "procurements"):
        api.answers[f"POST /v1/{noun}"] = (201, {"id": "x_1", "name": "inference"})
    api.answers["PATCH /v1/deployments/inference"] = {"id": "depl_1", "name": "inference"}
    for line in (
        "capacities create --name inference",
        "instance-templates create --name inference-worker --image ubuntu-22.04.5-cuda-12.7 --cloud-init ./startup.sh",
        "deployments create --name inference --capacity inference --instance-template inference-worker "
        "--target-instance-count 4",
        "procurements create --name inference --capacity inference --target node_count --max-buy-price 20.00 "
        "--min-sell-price 10.00 --window 2h",
        "deployments set inference --target-instance-count 8",
    ):
        code, _, err = run(line)
        assert code == 0, (line, err)
    assert api.sent("POST /v1/instance_templates") == {
        "name": "inference-worker", "image": "ubuntu-22.04.5-cuda-12.7",
        "cloud_init_user_data": "IyEvYmluL3NoCmVjaG8gaGkK",
    }  # fmt: skip
    assert api.sent("POST /v1/deployments") == {
        "name": "inference", "capacity": "inference", "instance_template": "inference-worker",
        "target_instance_count": 4, "kind": "generic",
    }  # fmt: skip
    assert api.sent("POST /v1/procurements") == {
        "name": "inference", "capacity": "inference", "target": "node_count", "instance_sku": "isku_1",
        "max_buy_price_dollars_per_node_hour": "20.00", "min_sell_price_dollars_per_node_hour": "10.00",
        "managed_window_minutes": 120,
    }  # fmt: skip
    assert api.sent("PATCH /v1/deployments/inference") == {"target_instance_count": 8}
    assert run("deployments create --name b --capacity c --instance-template t --count 2 --max-buy-price 3")[0] == 0
    assert api.sent("POST /v1/deployments")["kind"] == "spot"


# --- one description of all commands ---


def whole_parser() -> argparse.ArgumentParser:
    return command.make_parser(command.table(), None)


def commands_in(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for below in tree.get("commands", ()):
        yield from commands_in(below)


def test_the_tree_describes_every_command_and_its_examples_parse() -> None:
    made = whole_parser()
    tree = json.loads(json.dumps(agents.whole(made)))
    found = list(commands_in(tree))
    assert {each["name"] for each in tree["commands"]} == set(command.table())
    leaves = [each for each in found if not each.get("commands")]
    missing = [each["command"] for each in leaves if not each["examples"] and each["command"].split()[1] in COMMANDS]
    assert not [name for name in missing if name.split()[1] not in ("endpoints", "models", "nodes")], missing
    for each in found:
        for example in each.get("examples", ()):
            words = shlex.split(example.removeprefix('eval "$(').removesuffix(')"').partition(" > ")[0])
            assert words[0] == "nanopod"
            made.parse_args(words[1:])
    create = next(each for each in found if each["command"] == "nanopod orders create")
    flags = {flag: option for option in create["options"] for flag in option["flags"]}
    assert flags["--side"]["choices"] == ["buy", "sell"] and flags["--side"]["required"]
    assert flags["--count"]["flags"] == ["--nodes", "--count", "-n"] and flags["--nodes"]["default"] == 1
    assert flags["--wait"]["default"] == "30s" and flags["--no-wait"]["switch"]
    assert flags["--capacity"]["values_from"] == "GET /v1/capacities"
    assert next(each for each in tree["commands"] if each["name"] == "capacities")["aliases"] == ["pools"]
    assert tree["exit_codes"]["7"] == "the order did not fill"


def test_the_tree_is_printed_as_json(run: Run) -> None:
    code, out, err = run("agents ctx")
    assert (code, err) == (0, "") and json.loads(out)["name"] == "nanopod"


def test_every_flag_of_the_tree_is_accepted() -> None:
    """The tree and the parser are one: each option it names parses, with a value of its own kind."""
    made = whole_parser()
    for each in commands_in(agents.whole(made)):
        if each.get("commands") or each["command"] == "nanopod" or each["command"].split()[1] not in COMMANDS:
            continue
        required = [word for o in each["options"] if o["required"] for word in (o["flags"][0], value_of(o))]
        places = [value_of(a) for a in each["arguments"] if a["required"]]
        for option in each["options"]:
            for flag in option["flags"]:
                given = [flag] if option["switch"] else [flag, value_of(option)]
                made.parse_args([*each["command"].split()[1:], *required, *given, *places])


def value_of(option: dict[str, Any]) -> str:
    return str(option["choices"][0]) if option.get("choices") else "1"


def test_every_alias_is_the_same_command() -> None:
    for verb, aliases in ALIASES.items():
        for alias in aliases:
            made = command.make_parser(command.table(), alias)
            assert made.parse_args([alias, "list"]).handler
            assert verb in COMMANDS


def test_completion_offers_what_may_come_next(api: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    made = whole_parser()
    offered: Callable[..., list[str]] = lambda *words: completion.candidates(made, words)  # noqa: E731
    assert offered("capa") == ["capacities"] and "pools" in offered("")
    assert offered("capacities", "t") == ["transfers"] and offered("capacities", "transfers", "c") == ["create"]
    assert offered("orders", "create", "--side", "") == ["buy", "sell"]
    assert offered("orders", "create", "--max") == ["--max-price", "--max-rate"]
    assert offered("orders", "create", "--side", "buy", "--capacity", "d") == ["dev"]
    assert offered("capacities", "get", "") == ["dev"] and offered("capacities", "get", "dev", "") == []
    monkeypatch.setenv("NANOPOD_URL", "http://127.0.0.1:9")
    assert offered("capacities", "get", "") == []


def test_bash_asks_for_completions() -> None:
    script = subprocess.run(
        ["bash", "-c", 'eval "$(nanopod completion bash)"; COMP_WORDS=(nanopod orders create --side ""); COMP_CWORD=4; '
         '_nanopod; echo "${COMPREPLY[*]}"; complete -p nanopod'],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert script.stdout.splitlines() == ["buy sell", "complete -o default -F _nanopod nanopod"], script.stderr
    for shell in ("zsh", "fish"):
        assert "nanopod completion words" in completion.SCRIPTS[shell]


def test_a_command_after_two_dashes_is_taken_whole() -> None:
    made = whole_parser()
    found = made.parse_args(["instances", "run", "a", "b", "--fan-out", "2", "--", "ls", "-l", "--", "x"])
    assert found.names == ["a", "b"] and found.command == ["ls", "-l", "--", "x"] and found.fan_out == 2
    assert made.parse_args(["instances", "ssh", "a"]).command == []
    assert isinstance(made, parser.Parser)
