"""What one call has beside the options of its function: `f.with_options(...)`, read and checked here."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nanopod.client.marks import Retries
from nanopod.client.options import Options
from nanopod.model.endpoint import GPUS_MAX, PLACE_CHARS_MAX, RetrySpec
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.sessions import Session

OPTIONS: Final = (
    "timeout", "queue_timeout", "priority", "deadline", "retries", "idempotent", "workload", "model", "session",
    "webhook", "gpu", "region",
)  # fmt: skip
_OF_FUNCTION: Final = ("timeout", "queue_timeout", "priority", "deadline", "retries", "idempotent")
_OF_DEPLOYMENT: Final = ("concurrency", "batch", "cache_ttl", "schedule", "web", "on_preempt")
_MODEL_CHARS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class PerCall:
    """Options that only a call has. The neutral one changes nothing."""

    model: str = ""
    """Routing key: workers that had it before are preferred."""
    session: Session | str | None = None
    """A session, or its id: the call runs on the worker that it is pinned to."""
    webhook: str = ""
    """Where the result is posted; such a call is a spawned one."""
    workload: float | None = None
    """Units of load; None: what the function's calculator says."""
    retries: RetrySpec | None = None
    """In place of the function's own."""
    gpus: list[str] = field(default_factory=list)
    """GPU models that the call would rather run on, the best first."""
    region: str = ""
    """Where it would rather run."""

    def session_id(self) -> str:
        """Id of the session, or the empty text. Raises `Invalid` for one that is not open."""
        if self.session is None or isinstance(self.session, str):
            return self.session or ""
        return self.session.id


def changed(name: str, options: Options, per_call: PerCall, given: dict[str, Any]) -> tuple[Options, PerCall]:
    """Both with what `with_options` was given. Raises TypeError for a name, `Invalid` for a value."""
    for option in given:
        if option in _OF_DEPLOYMENT:
            raise Invalid(
                f"{name}: {option} is no option of a call, its workers run already; set it where the function is "
                "defined (@app.remote)",
                field=option,
            )
        if option not in OPTIONS:
            near = difflib.get_close_matches(option, OPTIONS, 1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(OPTIONS)}"
            raise TypeError(f"with_options of {name} has no option {option!r}; {advice}")
    own = {key: given[key] for key in _OF_FUNCTION if given.get(key) is not None}
    made = dataclasses.replace(options, **own)
    made.check(name)
    more: dict[str, Any] = {key: given[key] for key in ("model", "session", "webhook", "workload") if key in given}
    retries = given.get("retries")
    if isinstance(retries, Retries):
        more["retries"] = retries.spec()
    _check(name, more)
    if "gpu" in given:
        more["gpus"] = _gpus(name, given["gpu"])
    if "region" in given:
        more["region"] = _region(name, given["region"])
    return made, dataclasses.replace(per_call, **more)


def _check(name: str, more: dict[str, Any]) -> None:
    model = more.get("model", "")
    if not isinstance(model, str) or len(model) > _MODEL_CHARS_MAX:
        raise Invalid(f"{name}: model is a text of at most {_MODEL_CHARS_MAX} characters, not {model!r}", field="model")
    webhook = more.get("webhook", "")
    if not isinstance(webhook, str) or (webhook and not webhook.startswith(("http://", "https://"))):
        raise Invalid(f"{name}: webhook is a URL such as https://example.org/done, not {webhook!r}", field="webhook")
    workload = more.get("workload")
    if workload is not None and (
        isinstance(workload, bool) or not isinstance(workload, int | float) or not 0 <= workload < math.inf
    ):
        raise Invalid(f"{name}: workload is a number of units of load, 0 or more, not {workload!r}", field="workload")
    session = more.get("session")
    if session is not None and not isinstance(session, str) and not hasattr(session, "lifetime"):
        raise Invalid(
            f"{name}: session is what `async with app.session() as s` gives, not {session!r}", field="session"
        )


def _gpus(name: str, gpu: Any) -> list[str]:
    names = [gpu] if isinstance(gpu, str) else gpu
    if not isinstance(names, list | tuple) or not all(_is_name(one) for one in names) or len(names) > GPUS_MAX:
        raise Invalid(
            f"{name}: gpu is a GPU's name or a list of at most {GPUS_MAX} of them, the best first, such as "
            f"[H100_SXM, A100_SXM4] (they are in nanopod), not {gpu!r}",
            field="gpu",
        )
    return list(names)


def _region(name: str, region: Any) -> str:
    if region != "" and not _is_name(region):
        raise Invalid(
            f'{name}: region is a name such as "eu", of at most {PLACE_CHARS_MAX} characters, not {region!r}',
            field="region",
        )
    return str(region)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= PLACE_CHARS_MAX
