"""Money, rates, schedules, ids: exact, and closed under their operations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model.capacity import Capacity
from nanopod.model.errors import Invalid, NanopodError, by_code
from nanopod.model.ids import PREFIXES, key_id_of, make_id, make_key
from nanopod.model.money import Money, Rate
from nanopod.model.schedule import Entry, Schedule, Window


@given(st.integers(-(10**15), 10**15))
def test_money_round_trips_as_text(micro: int) -> None:
    assert Money.parse(str(Money(micro))) == Money(micro)


@pytest.mark.parametrize("text", ["", "abc", "1.0000001", "nan", "inf", "1,5"])
def test_money_refuses_what_is_not_exact(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        Money.parse(text, "amount")
    assert caught.value.field == "amount"


@given(st.integers(0, 10**9), st.sampled_from([1, 5, 15, 60]))
def test_rate_round_trips_at_any_block(micro: int, block_s: int) -> None:
    assert Rate.parse(Rate(micro).dollars_per_node_hour(block_s), block_s) == Rate(micro)


def test_rate_needs_a_point_and_rounds_to_a_step() -> None:
    assert Rate.parse("2.50").micro_per_block == 41_667  # 2.50 $/h is 41,666.67 steps of 60 micro-dollars per hour
    assert Rate.parse("0.00009").micro_per_block == 2  # half-even
    with pytest.raises(Invalid):
        Rate.parse("2")


def test_floats_are_not_money() -> None:
    with pytest.raises(AssertionError):
        Money(1.0)  # type: ignore[arg-type]


def schedules() -> st.SearchStrategy[Schedule]:
    """Random ordered, disjoint entries; sometimes with an open end."""

    def build(steps: list[tuple[int, int, int]], open_end: bool) -> Schedule:
        at, entries = 0, []
        for gap, length, count in steps:
            at += gap
            entries.append(Entry(Window(at, at + length), count))
            at += length
        if open_end and entries:
            entries[-1] = Entry(Window(entries[-1].window.start_at, None), entries[-1].node_count)
        return Schedule.of(entries)

    step = st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(0, 3))
    return st.builds(build, st.lists(step, max_size=6), st.booleans())


@given(schedules(), schedules())
def test_schedules_add_and_subtract_block_by_block(a: Schedule, b: Schedule) -> None:
    both = a.plus(b)
    for at in range(70):
        assert both.nodes_at(at) == a.nodes_at(at) + b.nodes_at(at)
    assert both.minus(b) == a
    assert both == b.plus(a)


@given(schedules())
def test_next_change_names_every_change(schedule: Schedule) -> None:
    changes, at = [], -1
    while (found := schedule.next_change(at)) is not None:
        changes.append(found)
        at = found
    for at in range(1, 70):
        if schedule.nodes_at(at) != schedule.nodes_at(at - 1):
            assert at in changes


def test_a_capacity_sums_its_skus() -> None:
    hour = Schedule.of([Entry(Window(0, 3600), 2)])
    whole = Capacity("cap_1", "wksp_1", "c", by_sku={"a": hour, "b": hour}).total()
    assert whole.nodes_at(10) == 4
    assert whole.nodes_at(3600) == 0


@given(st.binary(min_size=40, max_size=40))
def test_keys_carry_their_own_checksum(random: bytes) -> None:
    key_id, key = make_key(random)
    assert key_id_of(key) == key_id
    assert key.startswith("sk_np_")
    broken = key[:-9] + ("0" if key[-10] != "0" else "1") + key[-9:]
    assert key_id_of(broken[1:]) is None
    assert key_id_of(key[:12] + ("x" if key[12] != "x" else "y") + key[13:]) is None


def test_ids_have_a_prefix_and_21_characters() -> None:
    for kind, prefix in PREFIXES.items():
        made = make_id(kind, bytes(range(21)))
        assert made.startswith(prefix)
        assert len(made) == len(prefix) + 21


def test_error_codes_are_unique() -> None:
    tree = by_code()
    assert len(tree) == len(set(tree.values()))
    assert all(issubclass(cls, NanopodError) and 400 <= cls.status <= 599 for cls in tree.values())
