"""The one error tree. Servers map it to a status once; the SDK raises the same classes.

```
NanopodError                     500 internal_error
├── Invalid                      422 unprocessable_entity   (the request names something impossible)
│   └── SerializationError       422                        (a value that cannot travel; names its path)
├── NotReady                     409 conflict               (a call before `ensure_ready()`)
├── Unauthenticated              401 authentication_error
├── PaymentRequired              402 payment_required
├── Denied                       403 forbidden
├── NotFound                     404 not_found
├── Conflict                     409 conflict               (also a stale generation)
├── QuotaExceeded                429 too_many_requests
├── NoCapacity                   503 service_unavailable    (+ Retry-After)
├── WakeTimeout                  504 wake_timeout
├── QueueTimeout                 504 queue_timeout
├── CallTimeout                  504 call_timeout           (also a TimeoutError)
├── WorkerLost                   502 worker_lost            (also a ConnectionError)
│   └── SessionLost              502 session_lost
├── DeploymentFailed             502 deployment_failed      (import, environment, context or benchmark broke)
├── RemoteError                  502 remote_error           (an exception whose class this side does not know)
└── Cancelled                    499 cancelled
```
"""

from __future__ import annotations

from typing import ClassVar


class NanopodError(Exception):
    """Root of every error nanopod raises on purpose.

    `message` says what is wrong and how to mend it; `field` names the offending input when there is one.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str = "", *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.call_id: str | None = None
        self.attempts = 1
        """How often the call was tried."""


class Invalid(NanopodError):
    """The request is understood but impossible; `field` names what to change."""

    status = 422
    code = "unprocessable_entity"


class SerializationError(Invalid):
    """A value that cannot travel. The message holds its path, such as `args.x[3].model`."""

    code = "serialization_error"


class NotReady(NanopodError):
    """A remote function was called before the deployment was made ready."""

    status = 409
    code = "not_ready"


class Unauthenticated(NanopodError, RuntimeError):
    """No key, or one that is wrong, expired or revoked (never says which)."""

    status = 401
    code = "authentication_error"


class PaymentRequired(NanopodError):
    """The account cannot pay for this."""

    status = 402
    code = "payment_required"


class Denied(NanopodError):
    """The key is good but not for this."""

    status = 403
    code = "forbidden"


class NotFound(NanopodError):
    """No such object, or one that this key may not see."""

    status = 404
    code = "not_found"


class Conflict(NanopodError):
    """Something else holds the name, or the object changed meanwhile (stale generation)."""

    status = 409
    code = "conflict"


class QuotaExceeded(NanopodError):
    """A limit of the key, workspace or server was reached."""

    status = 429
    code = "too_many_requests"


class NoCapacity(NanopodError):
    """Nothing can take this now; `retry_after_s` says when to come back."""

    status = 503
    code = "service_unavailable"


class WakeTimeout(NanopodError):
    """No worker woke within the wait limit."""

    status = 504
    code = "wake_timeout"


class QueueTimeout(NanopodError):
    """The call waited longer than its `queue_timeout` and was never started."""

    status = 504
    code = "queue_timeout"


class CallTimeout(NanopodError, TimeoutError):
    """The call ran longer than its `timeout`."""

    status = 504
    code = "call_timeout"


class WorkerLost(NanopodError, ConnectionError):
    """The worker died after it had (or may have) started this call; it is not run again by itself."""

    status = 502
    code = "worker_lost"

    def __init__(
        self, message: str = "", *, started: bool | None = None, preempted: bool = False, field: str | None = None
    ) -> None:
        super().__init__(message, field=field)
        self.started = started
        self.preempted = preempted


class SessionLost(WorkerLost):
    """The worker that a sticky session was pinned to is gone."""

    code = "session_lost"


class DeploymentFailed(NanopodError):
    """The deployment cannot serve: its import, environment, context or benchmark failed.

    `stage` is one of `bundle`, `environment`, `import`, `context`, `benchmark`, `engine`, `start`.
    """

    status = 502
    code = "deployment_failed"

    def __init__(
        self, message: str = "", *, stage: str = "start", log_tail: str = "", field: str | None = None
    ) -> None:
        super().__init__(message, field=field)
        self.stage = stage
        self.log_tail = log_tail


class RemoteError(NanopodError, RuntimeError):
    """A remote exception whose class does not exist here; keeps its name, text and traceback."""

    status = 502
    code = "remote_error"

    def __init__(
        self, message: str = "", *, type_name: str = "", traceback: str = "", field: str | None = None
    ) -> None:
        super().__init__(message, field=field)
        self.type_name = type_name
        self.traceback = traceback


class Cancelled(NanopodError):
    """The caller withdrew the call."""

    status = 499
    code = "cancelled"


def count_of(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, as texts say it: `1 node`, `2 nodes`, `0 capacities`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def by_code() -> dict[str, type[NanopodError]]:
    """Every class of the tree by its `code`; what a frame or an API answer names is looked up here."""
    found: dict[str, type[NanopodError]] = {}
    waiting: list[type[NanopodError]] = [NanopodError]
    while waiting:
        cls = waiting.pop()
        found.setdefault(cls.code, cls)
        waiting.extend(cls.__subclasses__())
    return found
