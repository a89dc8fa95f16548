"""Hardware requirements: every column and operator as JSON and as text, there and back."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopod.client import columns, gpus
from nanopod.client.image import Image
from nanopod.client.query import ALIASES, FlagColumn, Query, TextColumn, parse_query
from nanopod.client.query import columns as known
from nanopod.data import query as public
from nanopod.data.query import RTX_4090, RTX_5090, duration, gpu_name, gpu_ram, num_gpus, verified
from nanopod.model.errors import Invalid

OPERATORS = {
    "eq": operator.eq, "neq": operator.ne, "lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge,
}  # fmt: skip


def values(column: Any) -> st.SearchStrategy[Any]:
    if isinstance(column, FlagColumn):
        return st.booleans() | st.none()
    if isinstance(column, TextColumn):
        return st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)
    return st.integers(-(10**12), 10**12) | st.floats(-1e9, 1e9).map(lambda x: round(x, 6))


def test_every_name_is_there() -> None:
    assert len(known) == 96 and len(columns.__all__) == 96
    assert len(gpus.__all__) == 144
    for name in columns.__all__:
        assert getattr(public, name).name == ("id" if name == "id_" else name)
    for name in gpus.__all__:
        spelled = getattr(public, name)
        assert spelled.replace(" ", "_").replace("-", "_") == name
    assert public.RTX_PRO_6000_Max_Q == "RTX PRO 6000 Max-Q" and public.P104_100 == "P104-100"


@pytest.mark.parametrize("name", sorted(known))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_text_and_json_agree_for_every_column_and_operator(name: str, data: st.DataObject) -> None:
    column = known[name]
    for op, compare in OPERATORS.items():
        query = compare(column, data.draw(values(column)))
        assert list(query.query[name]) == [op]
        assert parse_query(str(query)) == query.query
    several = data.draw(st.lists(values(column), min_size=1, max_size=3))
    for query in (column.in_(several), column.notin_(several)):
        assert parse_query(str(query)) == query.query


def test_units_are_in_the_operator() -> None:
    assert (gpu_ram >= 48).query == {"gpu_ram": {"gte": 48000}} and str(gpu_ram >= 48) == "gpu_ram>=48"
    assert (duration >= 1.5).query == {"duration": {"gte": 129600}} and str(duration >= 1.5) == "duration>=1.5"
    assert gpu_ram.in_([24, 48]).query == {"gpu_ram": {"in": [24000, 48000]}}
    assert str(gpu_ram.in_([24, 48.5])) == "gpu_ram in 24,48.5"


@settings(deadline=None)
@given(st.integers(1, 10**9))
def test_any_wire_value_survives_its_text(wire: int) -> None:
    for name in ("gpu_ram", "duration"):
        query = Query({name: {"gte": wire}})
        assert parse_query(str(query)) == query.query


def test_the_worked_example_and_overriding_a_seeded_condition() -> None:
    seeded = Query.search_defaults().extend(gpu_name.in_([RTX_4090, RTX_5090]))
    assert str(seeded) == "verified=true rentable=true rented=false gpu_name in RTX_4090,RTX_5090"
    mine = Query.search_defaults().extend(verified == False)  # noqa: E712 - builds a condition
    assert mine.query["verified"] == {"eq": False}
    with pytest.raises(ValueError, match=r"Cannot redefine op\(s\) \{'eq'\} for column 'verified'"):
        mine.extend(verified == True)  # noqa: E712


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu_name in [RTX_4090, 'RTX 5090']", {"gpu_name": {"in": ["RTX 4090", "RTX 5090"]}}),
        ("dph<0.5 cuda_vers >= 12.1", {"dph_total": {"lt": 0.5}, "cuda_max_good": {"gte": 12.1}}),
        ("os_version==22.04", {"os_version": {"eq": "22.04"}}),
        ("gpu_name not eq A10 num_gpus noteq 2", {"gpu_name": {"neq": "A10"}, "num_gpus": {"neq": 2}}),
        ("gpu_name not in A10,L4 datacenter=True", {"gpu_name": {"notin": ["A10", "L4"]}, "datacenter": {"eq": True}}),
        ("gpu_name nin A10", {"gpu_name": {"notin": ["A10"]}}),
        ('geolocation="Sweden, SE"', {"geolocation": {"eq": "Sweden, SE"}}),
        ("reliability gt .99 static_ip=None", {"reliability": {"gt": 0.99}, "static_ip": {"eq": None}}),
        ("num_gpus>=2 num_gpus<=4 verified=any", {"num_gpus": {"gte": 2, "lte": 4}}),
        ("", {}),
    ],
)
def test_what_people_write(text: str, found: dict[str, Any]) -> None:
    assert parse_query(text) == found


def test_a_wildcard_removes_a_condition_of_the_base() -> None:
    base = Query.search_defaults()
    for wildcard in ("any", "?", "*"):
        assert "verified" not in parse_query(f"verified={wildcard}", base)
    assert base.query["verified"] == {"eq": True}


@pytest.mark.parametrize(
    "text", ["gpu_ram>=", "gpu_ram ~ 4", "gpu_ram>=any", "gpu_ram", "gpu_ram = ", "num_gpus=[1,2]", "num_gpus=1,2", "num_gpus=''", "a=1 &"]
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:a is not a known property")
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_query(text)


def test_an_unknown_field_is_a_warning_with_the_nearest_name() -> None:
    with pytest.warns(UserWarning, match="did you mean gpu_ram"):
        assert parse_query("gpu_rma>=5") == {"gpu_rma": {"gte": 5}}
    assert "gpu_rma" not in known


def test_combinators() -> None:
    assert ((gpu_name == RTX_4090) | gpu_name.in_([RTX_5090])).query == {"gpu_name": {"in": [RTX_4090, RTX_5090]}}
    both = (num_gpus >= 2) & (gpu_ram >= 24)
    assert both.query == {"num_gpus": {"gte": 2}, "gpu_ram": {"gte": 24000}}
    either = (num_gpus >= 2) | (gpu_ram >= 24)
    assert either.query == {"any": [{"num_gpus": {"gte": 2}}, {"gpu_ram": {"gte": 24000}}]}
    with pytest.raises(ValueError, match="no text form"):
        str(either)
    assert (~both).query == {"any": [{"num_gpus": {"lt": 2}}, {"gpu_ram": {"lt": 24000}}]}
    assert ~~both == both
    assert (~gpu_name.in_(["A"])).query == {"gpu_name": {"notin": ["A"]}}
    assert num_gpus.between(2, 4).query == {"num_gpus": {"gte": 2, "lte": 4}}
    assert gpu_name.prefer(["H100 SXM", "A100 SXM4"]).query == {"gpu_name": {"in": ["H100 SXM", "A100 SXM4"]}}


def test_mistakes_fail_loudly() -> None:
    with pytest.raises(TypeError, match="between"):
        assert 24 <= gpu_ram <= 48
    with pytest.raises(TypeError, match="list of values"):
        gpu_name.in_("RTX 4090")
    with pytest.raises(TypeError):
        gpu_ram == num_gpus  # noqa: B015 - the comparison itself refuses
    with pytest.raises(ValueError, match="finite"):
        gpu_ram >= float("inf")  # noqa: B015
    assert len({gpu_ram, num_gpus, gpu_ram}) == 2


def test_alternatives_that_must_both_hold_are_multiplied_out() -> None:
    both = ((gpu_ram >= 24) | (num_gpus >= 2)) & ((gpu_ram >= 48) | (num_gpus <= 4))
    assert both.query == {
        "any": [
            {"gpu_ram": {"gte": 48000}},
            {"gpu_ram": {"gte": 24000}, "num_gpus": {"lte": 4}},
            {"num_gpus": {"gte": 2}, "gpu_ram": {"gte": 48000}},
            {"num_gpus": {"gte": 2, "lte": 4}},
        ]
    }
    some = ((gpu_name == "A10") | (num_gpus >= 2)) & ((gpu_name == "L4") | (num_gpus >= 4))
    assert {"gpu_name": {"eq": "A10"}} not in some.query["any"], "nothing is both at once"
    assert len(some.query["any"]) == 3
    with pytest.raises(ValueError, match="exclude each other"):
        Query({"any": [{"gpu_name": {"eq": "A10"}}]}).extend(Query({"any": [{"gpu_name": {"eq": "L4"}}]}))
    mixed = Query().extend(
        Query({"any": [{"gpu_name": {"neq": "A10"}}]}), Query({"any": [{"gpu_name": {"neq": "L4"}}]})
    )
    assert mixed.query["any"][0]["gpu_name"]["notin"] == ["A10", "L4"]


def test_negation_of_a_mixture() -> None:
    mixed = (num_gpus >= 1) & ((gpu_ram >= 24) | (duration > 1))
    assert (~mixed).query == {"any": [{"num_gpus": {"lt": 1}}, {"gpu_ram": {"lt": 24000}, "duration": {"lte": 86400}}]}
    for op, negated in (("==", "neq"), ("!=", "eq"), ("<", "gte"), ("<=", "gt"), (">", "lte"), (">=", "lt")):
        compare = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
                   ">=": operator.ge}[op]  # fmt: skip
        assert (~compare(num_gpus, 2)).query == {"num_gpus": {negated: 2}}
    with pytest.raises(ValueError, match="nothing to negate"):
        ~Query()


def test_preferences_keep_their_order_beside_the_condition() -> None:
    first = gpu_name.prefer(["H100 SXM", "A100 SXM4"]) & (num_gpus == 1)
    assert first.query == {"gpu_name": {"in": ["H100 SXM", "A100 SXM4"]}, "num_gpus": {"eq": 1}}
    assert first.order == [{"gpu_name": {"eq": "H100 SXM"}}, {"gpu_name": {"eq": "A100 SXM4"}}]
    assert parse_query(str(first)) == first.query, "the order is not part of the text"
    image = Image().require(gpu_ram >= 24).prefer([gpu_name == "H100 SXM", (gpu_name == "L4") & (num_gpus == 4)])
    spec = image.spec()
    assert spec.query["any"] == [{"gpu_name": {"eq": "H100 SXM"}}, {"gpu_name": {"eq": "L4"}, "num_gpus": {"eq": 4}}]
    assert spec.prefer == tuple(spec.query["any"])
    assert spec.query["gpu_ram"] == {"gte": 24000} and spec.query["verified"] == {"eq": True}
    several = Image().prefer(gpu_name == "H100 SXM", gpu_name == "L4").spec()
    assert several.query["gpu_name"] == {"in": ["H100 SXM", "L4"]}
    assert several.prefer == ({"gpu_name": {"eq": "H100 SXM"}}, {"gpu_name": {"eq": "L4"}})
    product = Query().extend(gpu_name.prefer(["A", "B"]), num_gpus.prefer([2, 1]))
    assert product.order[:2] == [
        {"gpu_name": {"eq": "A"}, "num_gpus": {"eq": 2}}, {"gpu_name": {"eq": "A"}, "num_gpus": {"eq": 1}},
    ]  # fmt: skip
    with pytest.raises(Invalid, match="prefer"):
        Image().prefer(["H100"])  # type: ignore[list-item]


def test_aliases_and_wildcards() -> None:
    for alias, name in ALIASES.items():
        assert list(parse_query(f"{alias}=1")) == [name]
    with pytest.raises(ValueError, match="goes with = only"):
        parse_query("gpu_name!=any")


def test_strict_requirements_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Image().require(num_gpus >= 1).spec().strict
    monkeypatch.setenv("NANOPOD_LOCAL_STRICT", "1")
    assert Image().require(num_gpus >= 1).spec().strict
