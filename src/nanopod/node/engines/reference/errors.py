"""The engine's refusals in the shape OpenAI clients read."""

from __future__ import annotations

import msgspec

JSON_HEADERS = {"content-type": "application/json"}


class ApiError(Exception):
    """A request that is answered with an error body; `param` names the field at fault."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = "invalid_value",
        status: int = 400,
        kind: str = "invalid_request_error",
    ) -> None:
        """`kind` is the error's `type` on the wire."""
        super().__init__(message)
        self.status = status
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> bytes:
        """The JSON body, all four keys present."""
        return msgspec.json.encode({"error": self._error})
