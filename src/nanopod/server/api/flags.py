"""Which optional parts of the market this cluster has."""

from __future__ import annotations

from typing import Final, Literal, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.server.api.answers import answer
from nanopod.server.api.context import Context, Operation


class FlagAnswer(TypedDict):
    """A part of the market that a cluster may have."""

    object: Literal["feature_flag"]
    name: str
    enabled: bool
    description: str


async def list_flags(context: Context, _request: Request, _key: Key) -> Response:
    """Every optional part, and whether it is on. They are chosen when a cluster is made or started."""
    settings = context.desk.settings
    flags = (
        ("early_start", settings.early_start, "Instances start on idle nodes before their first block."),
        (
            "group_purchase",
            settings.group_purchase,
            "Standing bids may complete an ask for an all-or-none buy that needs a part of it.",
        ),
        ("test_clock", context.clock.frozen, "The market's time stands still until it is advanced."),
    )
    data: list[FlagAnswer] = [
        {"object": "feature_flag", "name": name, "enabled": enabled, "description": text}
        for name, enabled, text in flags
    ]
    return answer({"object": "list", "data": data, "has_more": False, "cursor": None})


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/feature_flags", list_flags, "Optional parts of the market", scope="read", answer=FlagAnswer,
        listed=True,
    ),
)  # fmt: skip
