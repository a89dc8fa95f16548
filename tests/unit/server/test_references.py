"""Cursors, names and the ways to name an object."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from nanopod.model.errors import Invalid
from nanopod.model.schedule import Entry, Schedule, Window
from nanopod.server.api.fields import check_tags, tag_filter
from nanopod.server.api.pages import Page, cut, page_of
from nanopod.server.api.references import canonical, capacity_reference, check_name
from nanopod.server.api.showing import clipped, entries_of


def request(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": [], "method": "GET", "path": "/"})


def test_earlier_prefixes_are_read() -> None:
    assert canonical("pool_abc") == "cap_abc"
    assert canonical("vm_abc") == "inst_abc"
    assert canonical("clus_abc") == "isku_abc"
    assert canonical("a-name") == "a-name"
    assert page_of(request("starting_after=pool_abc"), "cap_").after == "cap_abc"


def test_pages() -> None:
    assert page_of(request("limit=200&cursor=ordr_1"), "ordr_") == Page(200, "ordr_1", None)
    assert page_of(request("ending_before=ordr_1"), "ordr_") == Page(50, None, "ordr_1")
    rows = [f"ordr_{n}" for n in range(10)]
    assert cut(Page(3), rows, str) == rows[:4], "one more than is shown"
    assert cut(Page(3, after="ordr_7"), rows, str) == rows[8:]
    assert cut(Page(3, before="ordr_7"), rows, str) == rows[3:7]
    assert cut(Page(3, before="ordr_0"), rows, str) == []
    with pytest.raises(Invalid, match="not in this list any more"):
        cut(Page(3, after="ordr_99"), rows, str)


@pytest.mark.parametrize(("capacity", "pool"), [("cap_a", None), (None, "pool_a"), ("cap_a", "pool_a")])
def test_capacity_and_pool_are_the_same(capacity: str | None, pool: str | None) -> None:
    assert canonical(capacity_reference(capacity, pool)) == "cap_a"


def test_capacity_and_pool_must_not_differ() -> None:
    with pytest.raises(Invalid) as refused:
        capacity_reference("cap_a", "pool_b", field="from_capacity")
    assert refused.value.field == "from_capacity"
    assert "from_pool" in refused.value.message
    with pytest.raises(Invalid):
        capacity_reference(None, None)


@pytest.mark.parametrize("name", ["a", "A.b_c-1", "x" * 255])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a b", "a/b", "a:b", "x" * 256, "cap_" + "0" * 21, "pool_" + "A" * 21]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_name(name)
    assert refused.value.field == "name"


def test_tags() -> None:
    tags = {"team": "blue", "empty": ""}
    assert check_tags(tags) == tags
    for bad in ({"a=b": "c"}, {"a": "b,c"}, {"": "x"}, {"a": "x" * 257}):
        with pytest.raises(Invalid):
            check_tags(bad)
    assert tag_filter(request("tag=team=blue&tag_key=empty"))(tags)
    assert not tag_filter(request("tag=team=red"))(tags)
    assert not tag_filter(request("tag_key=other"))(tags)
    assert tag_filter(request("tag=a%253Db=c"))({"a=b": "c"}), "an inner = is percent-encoded"


def test_schedules_from_a_moment_on() -> None:
    schedule = Schedule((Entry(Window(0, 60), 1), Entry(Window(60, 180), 2), Entry(Window(240, None), 3)))
    assert entries_of(clipped(schedule, 120)) == [
        {"start_at": 120, "end_at": 180, "node_count": 2},
        {"start_at": 240, "end_at": None, "node_count": 3},
    ]
