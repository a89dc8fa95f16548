"""Which kinds of nodes a filter means."""

from __future__ import annotations

import pytest

from nanopod.model.capacity import Sku
from nanopod.model.errors import Invalid
from nanopod.server.api.requirements import matching, parse

H100 = Sku("isku_h100", "h100x8", accelerator="H100", num_accelerators=8, memory=2 << 40, region="eu-north")
A100 = Sku("isku_a100", "a100x4", accelerator="A100", num_accelerators=4, memory=1 << 40, region="eu-north")
CPU = Sku("isku_cpu", "cpu", num_vcpus=16, memory=64 << 30, supports_public_ipv4=True)
ALL = (H100, A100, CPU)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [A100, CPU, H100]),
        ("accelerator:H100", [H100]),
        ("accelerator:h100,A100", [A100, H100]),
        ("accelerator:not_in:H100,A100", [CPU]),
        ("region:eu-north;num_accelerators:gte:8", [H100]),
        ("num_accelerators:lt:8", [A100, CPU]),
        ("num_accelerators:gt:4;num_accelerators:lte:8", [H100]),
        ("memory:1099511627776", [A100]),
        ("supports_public_ipv4:true", [CPU]),
        ("instance_sku:clus_h100", [H100]),
        ("alias:cpu;", [CPU]),
        ("id:not_in:isku_cpu", [A100, H100]),
        ("region:eu%2Dnorth", [A100, H100]),
        ("accelerator:B200", []),
    ],
)
def test_filters(text: str, expected: list[Sku]) -> None:
    assert matching(parse(text), ALL) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour:red", "there is no property 'colour'"),
        ("acelerator:H100", "did you mean 'accelerator'"),
        ("accelerator", "must be key:value"),
        ("accelerator:", "names no value"),
        ("accelerator:like:H", "must be one of"),
        ("accelerator:gte:7", "compares a property that is a number"),
        ("memory:gte:lots", "compares a property that is a number"),
        ("memory:gte:1,2", "compares a property that is a number"),
        ("a:b:c:d", "must be key:value"),
        ("region:" + "x" * 5000, "at most 4096"),
    ],
)
def test_nonsense_is_refused(text: str, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse(text)
    assert said in refused.value.message
    assert refused.value.field == "requirements"
