"""Which function or mounted application answers a path below `/web/{endpoint}`. No IO.

The longest match wins: a function's pattern that fits the whole path is compared by its segments with the mounts that
are a prefix of it. Among functions, literal segments go before `{parameters}`, from the left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from nanopod.model.endpoint import AsgiSpec, FunctionSpec
from nanopod.model.wire import RouteRow

PREFIX: Final = "/web/"
KNOWN_MAX: Final = 4096
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Target:
    """What answers a request. Exactly one of `function` and `mount` is set."""

    auth: str
    function: FunctionSpec | None = None
    mount: AsgiSpec | None = None
    params: dict[str, str] = field(default_factory=dict)
    """Path parameters of a function, percent-decoded."""

    @property
    def name(self) -> str:
        """What its records and slots are counted under; a mount's cannot be a function's."""
        if self.function is not None:
            return self.function.name
        return f"asgi:{self.mount.name}" if self.mount is not None else ""

    @property
    def concurrency(self) -> int:
        """Requests that one worker may have at a time."""
        if self.function is not None:
            return self.function.concurrency
        return self.mount.concurrency if self.mount is not None else 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing answers: 404, or 405 with the methods there are."""

    status: int
    message: str
    allowed: tuple[str, ...] = ()
    auth: str = "public"


class _Pattern:
    """The path of one function."""

    __slots__ = ("literals", "methods", "segments", "spec")

    def __init__(self, spec: FunctionSpec) -> None:
        assert spec.web is not None, "only functions with a web path have a pattern"
        self.spec = spec
        self.segments = _segments(spec.web.path)
        method = spec.web.method
        self.methods = (method, "HEAD") if method == "GET" else (method,)
        self.literals = tuple(_PARAMETER.fullmatch(segment) is None for segment in self.segments)

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """The parameters of a path (as many decoded segments as the pattern has) that fits; None for another one."""
        found: dict[str, str] = {}
        for literal, wanted, given in zip(self.literals, self.segments, segments, strict=True):
            if literal:
                if wanted != given:
                    return None
            elif not given:
                return None
            else:
                found[wanted[1:-1]] = given
        return found


class WebTable:
    """The web paths of one endpoint."""

    __slots__ = ("_by_count", "_mounts", "_patterns")

    def __init__(self, route: RouteRow) -> None:
        self._patterns = sorted(
            (_Pattern(spec) for spec in route.functions.values() if spec.web is not None),
            key=lambda pattern: (pattern.literals, pattern.spec.name),
            reverse=True,
        )
        self._by_count: dict[int, list[_Pattern]] = {}
        for pattern in self._patterns:
            self._by_count.setdefault(len(pattern.segments), []).append(pattern)
        self._mounts = sorted(
            ((_segments(spec.path), spec) for spec in route.asgi), key=lambda item: len(item[0]), reverse=True
        )

    def find(self, method: str, path: str) -> Target | Refusal:
        """Who answers `method path`; the path is as it came (percent-encoded) and begins with a slash."""
        decoded = [unquote(segment) for segment in _segments(path)]
        known = self._by_count.get(len(decoded), ())
        fitting = [(pattern, found) for pattern in known if (found := pattern.match(decoded)) is not None]
        mount = next((spec for prefix, spec in self._mounts if decoded[: len(prefix)] == prefix), None)
        if mount is not None and not fitting:  # a pattern fits the whole path, so no prefix is longer
            return Target(mount.auth, mount=mount)
        for pattern, found in fitting:
            if method in pattern.methods or "ANY" in pattern.methods:
                web = pattern.spec.web
                return Target(web.auth if web is not None else "key", function=pattern.spec, params=found)
        if not fitting:
            return Refusal(404, f"nothing answers {path} here; there is {self.described()}", auth=self.auth)
        allowed = sorted({method for pattern, _ in fitting for method in pattern.methods})
        auth = "key" if any(p.spec.web is not None and p.spec.web.auth == "key" for p, _ in fitting) else "public"
        return Refusal(405, f"{path} takes {', '.join(allowed)}, not {method}", (*allowed, "OPTIONS"), auth)

    @property
    def auth(self) -> str:
        """`public` when anything here may be reached without a key."""
        specs = [pattern.spec.web for pattern in self._patterns]
        public = any(web is not None and web.auth == "public" for web in specs)
        return "public" if public or any(mount.auth == "public" for _, mount in self._mounts) else "key"

    def described(self) -> str:
        """Every path, for messages."""
        functions = [f"{p.spec.web.method} {p.spec.web.path}" for p in self._patterns if p.spec.web is not None]
        mounts = [f"{mount.path.rstrip('/')}/*" for _, mount in self._mounts]
        return ", ".join(sorted(functions + mounts)[:20]) or "no web path: mark a function with web=, or use @app.asgi"


class WebTables:
    """The tables of all endpoints, made when they are first asked for and again when a route has changed."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[RouteRow, WebTable]] = {}

    def of(self, route: RouteRow) -> WebTable:
        """The web paths of an endpoint."""
        known = self._known.get(route.endpoint_id)
        if known is None or known[0] is not route:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            known = self._known[route.endpoint_id] = (route, WebTable(route))
        return known[1]


def split(path: str) -> tuple[str, str, str]:
    """(endpoint, root, rest) of a path below `/web/`: `/web/a%3Adev/x` is (`a:dev`, `/web/a%3Adev`, `/x`)."""
    name, slash, rest = path[len(PREFIX) :].partition("/")
    return unquote(name), PREFIX + name, slash + rest if slash else "/"


def _segments(path: str) -> list[str]:
    """`/a/b/` is [a, b]; `/` is []. A slash at the end makes no difference, doubled ones inside do."""
    stripped = path.removeprefix("/")
    stripped = stripped.removesuffix("/")
    return stripped.split("/") if stripped else []
