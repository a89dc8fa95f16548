"""The seam between a worker and whatever produces its answers.

An engine gets a `Request` (what the gateway's OPEN frame carried) and speaks back through a `Sink` (which the worker's
link turns into HEAD, TOKENS, DATA, END and RESET frames). It never sees a socket, so the same engine runs under a test,
in a worker process, or behind another transport.

Continuation: a stream whose worker died is opened again elsewhere with `Attempt.choices` holding the token ids the
caller already has. An engine with `continuation="exact"` must go on with the very next token, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Continuation = Literal["exact", "best_effort", "none"]


@dataclass(frozen=True, slots=True)
class Caps:
    """What an engine can promise; it travels to the gateway in the worker's HELLO."""

    continuation: Continuation = "none"
    seed: bool = False
    token_ids: bool = False
    max_concurrency: int = 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """Identity of one try at a generation; all of it but `epoch`, `prompt_ids`, `choices` is the same in each."""

    request_id: str
    epoch: int = 1
    response_id: str = ""
    created: int = 0
    """Unix seconds, chosen once by the gateway so that chunks after a move are identical."""
    system_fingerprint: str = ""
    seed: int = 0
    prompt_ids: tuple[int, ...] | None = None
    """None on the first attempt; the ids an earlier worker reported in its HEAD otherwise."""
    choices: tuple[tuple[int, ...], ...] = ()
    """Token ids already delivered, per choice; output, never prompt."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP-shaped request for an engine."""

    method: str
    path: str
    """Path without query, e.g. `/v1/chat/completions`."""
    headers: Mapping[str, str]
    body: bytes
    attempt: Attempt
    timeout_s: float = 600.0
    query: str = ""
    """What follows the `?` of the target, as it came."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Units of one finished request, over all its attempts."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Microseconds of work in this attempt."""

    compute_us: int = 0
    first_token_us: int = 0


class Sink(Protocol):
    """Where an engine puts its answer. Every method may be called from any thread; calls keep their order.

    Order of calls: `head` once, then any of `tokens` and `data`, then `end`; or `reset` at any point instead.
    """

    @property
    def cancelled(self) -> bool:
        """True once the caller left or the attempt was fenced: stop working, no further call is needed."""
        ...

    def head(
        self, status: int, headers: Mapping[str, str], *, streaming: bool, prompt_ids: Sequence[int] | None = None
    ) -> None:
        """Status and headers of the answer. Engines that can be continued pass the prompt's token ids."""
        ...

    def tokens(self, choice: int, first_index: int, ids: Sequence[int], sse: bytes) -> None:
        """A flush point: output ids [first_index, first_index + len(ids)) of `choice` and the ready SSE bytes for them.

        Empty `sse` is allowed (non-streamed answers report progress so that they too can be continued).
        """
        ...

    def data(self, chunk: bytes) -> None:
        """Body bytes that stand for no tokens (a JSON answer, a closing chunk, a foreign engine's stream)."""
        ...

    async def drained(self) -> None:
        """Wait until the link has taken what was given so far (for engines that relay another stream)."""
        ...

    def end(self, usage: Usage, finish: Sequence[str], timings: Timings) -> None:
        """The answer is complete. `finish` holds one reason per choice (`stop`, `length`, ...)."""
        ...

    def reset(self, code: str, text: str) -> None:
        """The attempt failed: `engine_lost`, `refused`, `too_large`, `deadline` or `internal`, and why."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine is doing now; it travels in the worker's STATE frames."""

    running: int = 0
    waiting: int = 0
    kv_use: float = -1.0
    """Share of the key-value cache that is in use, 0 to 1; -1: not known."""


@dataclass(frozen=True, slots=True)
class Card:
    """What an engine serves, for `/v1/models`."""

    model_id: str
    created: int = 0
    kind: Literal["chat", "completion", "embedding"] = "chat"
    context_length: int = 0
    extra: Mapping[str, object] = field(default_factory=dict)


class Engine(Protocol):
    """The adapter every engine implements."""

    caps: Caps

    async def start(self) -> Card:
        """Load weights or start the child process; return when one token (or vector) came out. Raises on failure."""
        ...

    async def handle(self, request: Request, sink: Sink) -> None:
        """Answer one request through `sink`; returns when it ended. Cancelled when the caller left."""
        ...

    def load(self) -> Load:
        """Current load, cheap."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Finish within `grace_s` seconds, then give up everything."""
        ...
