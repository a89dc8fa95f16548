"""The OpenAPI document: valid, and it leaves nothing about an operation unsaid."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import msgspec
import pytest
from openapi_spec_validator import validate

from nanopod.server.api import openapi
from nanopod.server.api.app import OPERATIONS
from nanopod.server.api.context import Operation

DOCUMENT: dict[str, Any] = json.loads(msgspec.json.encode(openapi.document(OPERATIONS)))


def described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][operation.path][operation.method.lower()]
    return found


def test_it_is_a_valid_openapi_3_1_document() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    validate(DOCUMENT)


def test_every_schema_is_a_json_schema_and_every_reference_leads_somewhere() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT))):
        place: Any = DOCUMENT
        for step in reference.split("/"):
            place = place[step]


def test_operations_have_names_of_their_own() -> None:
    names = [one["operationId"] for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_operation_says_what_it_takes_and_answers(operation: Operation) -> None:
    found = described(operation)
    assert found["summary"] and found["tags"] and found["description"]
    parameters = {(one["name"], one["in"]): one for one in found["parameters"]}
    assert len(parameters) == len(found["parameters"]), "a parameter is declared once"
    for name in re.findall(r"\{(\w+)\}", operation.path):
        assert parameters[name, "path"]["required"]
    assert all("type" in one["schema"] for one in found["parameters"])
    assert (operation.body is not None) == ("requestBody" in found)
    assert ("Idempotency-Key", "header") in parameters or not operation.once
    success = found["responses"][str(operation.status)]
    assert success["description"]
    for status in ("401", "403", "422", "500"):
        assert found["responses"][status]["$ref"] == f"#/components/responses/{status}"


MARKET = (
    "capacities", "pools", "capacity_transfers", "pool_transfers", "orders", "order_preview", "orderbook", "contracts",
    "procurements", "providers", "provider", "offers", "instance_skus", "instance_sku_property_catalog", "events",
    "test_clock", "market_settings",
)  # fmt: skip


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.path.split("/")[2:3] and one.path.split("/")[2] in MARKET],
    ids=lambda operation: f"{operation.method} {operation.path}",
)  # fmt: skip
def test_answers_of_the_market_have_a_schema(operation: Operation) -> None:
    found = described(operation)
    schema = found["responses"][str(operation.status)]["content"]["application/json"]["schema"]
    if operation.listed:
        assert set(schema["required"]) == {"object", "cursor", "has_more", "data"}
        schema = schema["properties"]["data"]["items"]
    assert schema["$ref"].startswith("#/components/schemas/")


def test_paths_and_verbs_of_the_market_are_all_there() -> None:
    wanted = {
        "/v1/capacities": "get post", "/v1/capacities/{id}": "get patch delete", "/v1/pools": "get post",
        "/v1/pools/{id}": "get patch delete", "/v1/capacity_transfers": "get post", "/v1/capacity_transfers/{id}": "get",
        "/v1/pool_transfers": "get post", "/v1/orders": "get post", "/v1/orders/{id}": "get delete",
        "/v1/order_preview": "post", "/v1/orderbook/quote": "get", "/v1/orderbook/depth": "get",
        "/v1/orderbook/windows": "get", "/v1/orderbook/fills": "get", "/v1/contracts": "get", "/v1/contracts/{id}": "get",
        "/v1/procurements": "get post", "/v1/procurements/{id}": "get patch delete", "/v1/instance_skus": "get",
        "/v1/instance_skus/{id}": "get", "/v1/instance_skus/{id}/availability": "get",
        "/v1/instance_skus/availability": "get", "/v1/instance_sku_property_catalog": "get", "/v1/events": "get",
        "/v1/providers": "get post", "/v1/providers/{id}": "get patch delete", "/v1/offers": "get post",
        "/v1/offers/{id}": "get patch delete", "/v1/provider/orders": "get", "/v1/test_clock": "get post",
    }  # fmt: skip
    there = {path: set(found) for path, found in DOCUMENT["paths"].items()}
    assert {path: verbs for path, verbs in wanted.items() if set(verbs.split()) - there.get(path, set())} == {}


def test_filters_are_typed() -> None:
    orders = {one["name"]: one for one in DOCUMENT["paths"]["/v1/orders"]["get"]["parameters"]}
    assert orders["status"]["schema"]["type"] == "array"
    assert orders["status"]["explode"] is True
    assert orders["status"]["schema"]["items"]["enum"][0] == "pending"
    assert orders["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}
    skus = {one["name"]: one for one in DOCUMENT["paths"]["/v1/instance_skus"]["get"]["parameters"]}
    assert {"accelerator", "region", "num_vcpus", "requirements"} <= skus.keys()


def test_bodies_are_typed() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    order = schemas["NewOrder"]
    assert order["properties"]["side"]["enum"] == ["buy", "sell"]
    assert order["properties"]["limit_price_dollars_per_node_hour"]["pattern"] == r"^\d+\.\d+$"
    assert order["required"] == [
        "side", "instance_sku", "allocation_schedule_delta", "limit_price_dollars_per_node_hour",
    ]  # fmt: skip
    assert not schemas["ProcurementChange"].get("required"), "a PATCH needs nothing"
