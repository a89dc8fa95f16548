"""What a webhook is sent, how it is signed, when it is tried again, and where nothing is sent."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from nanopod.model.chain import Event
from nanopod.model.errors import Invalid
from nanopod.server.api.webhooks import check_types, check_url, status_of
from nanopod.server.webhooks import (
    GIVE_UP_S,
    RETRY_S_MAX,
    RETRY_S_MIN,
    back_off_s,
    body_of,
    is_public,
    matches,
    signature,
)
from nanopod.store.hooks import Webhook


def hook(**more: object) -> Webhook:
    values: dict[str, object] = {
        "webhook_id": "whook_1", "workspace_id": "w1", "name": "ops", "url": "http://example.com/x", "types": (),
        "enabled": True, "secret": "whsec_hidden", "cursor": 0, "created_at": 1.0, "updated_at": 1.0, **more,
    }  # fmt: skip
    return Webhook(**values)  # type: ignore[arg-type]


def test_a_signature_can_be_made_again_from_secret_time_and_body() -> None:
    body = b'{"id":"evnt_7"}'
    expected = hmac.new(b"whsec_abc", b'1700000000.{"id":"evnt_7"}', hashlib.sha256).hexdigest()
    assert signature("whsec_abc", body, 1_700_000_000) == f"t=1700000000,v1={expected}"
    assert signature("whsec_abd", body, 1_700_000_000) != signature("whsec_abc", body, 1_700_000_000)
    assert signature("whsec_abc", body, 1_700_000_001).partition("v1=")[2] != expected


def test_the_body_holds_the_event() -> None:
    event = Event(7, 12.9, "w1", "order.filled", "ordr_1", {"amount": 3})
    assert json.loads(body_of(event)) == {
        "id": "evnt_7", "type": "order.filled", "created_at": 12, "object_id": "ordr_1", "workspace_id": "w1",
        "data": {"amount": 3},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        ((), True), (("*",), True), (("instance.*",), True), (("instance",), True), (("instance.running",), True),
        (("order.filled", "instance.running"), True), (("instance.failed",), False), (("inst",), False),
        (("instance_template.*",), False), (("instance.run",), False),
    ],
)  # fmt: skip
def test_types_choose_events(types: tuple[str, ...], wanted: bool) -> None:
    assert matches(types, "instance.running") is wanted


def test_attempts_grow_apart_and_stay_within_limits() -> None:
    middle = [back_off_s(failures, 0.5) for failures in range(1, 12)]
    assert middle[:4] == [1.0, 2.0, 4.0, 8.0]
    assert middle[-1] == RETRY_S_MAX
    for failures in (1, 2, 9, 10, 5_000):
        low, high = back_off_s(failures, 0.0), back_off_s(failures, 0.999)
        assert RETRY_S_MIN <= low < high <= RETRY_S_MAX


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("192.168.0.1", False), ("172.16.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False), ("::", False), ("fe80::1%eth0", False),
        ("fd00::1", False), ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("2002:7f00:1::", False),
        ("64:ff9b::a00:1", False),
    ],
)  # fmt: skip
def test_special_addresses_are_known(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    ["", "example.com", "ftp://example.com/", "file:///etc/passwd", "http://", "https://user:pw@example.com/",
     "http://example.com:99999/", "http://example.com:0/", "http://[::1/", "http://example.com/a b",
     "http://example.com/" + "a" * 2_100],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_url(url)
    assert refused.value.field == "url"
    assert "pw@" not in refused.value.message


def test_types_are_checked() -> None:
    assert check_types(["order.filled", "instance.*", "order.filled"]) == ("order.filled", "instance.*")
    for wrong in ("", "Order", "order.", "order.*.x", "order filled"):
        with pytest.raises(Invalid):
            check_types([wrong])
    with pytest.raises(Invalid):
        check_types(["order.*"] * 101)


def test_the_status_follows_the_failures() -> None:
    now = 1_000_000.0
    assert status_of(hook(), now)["state"] == "active"
    assert status_of(hook(enabled=False, failures=3), now)["state"] == "disabled"
    failed = hook(failures=3, failed_since=now - 10, message="it answered 500")
    assert status_of(failed, now) == {"state": "retrying", "message": "it answered 500"}
    assert status_of(hook(failures=300, failed_since=now - GIVE_UP_S), now)["state"] == "failing"


def test_a_webhook_does_not_print_its_secret() -> None:
    assert "hidden" not in repr(hook())
