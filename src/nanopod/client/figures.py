"""`app.stats()` and `f.stats()`: the server's view of a deployment, cut to what one asks of it in a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanopod.model.errors import NotFound

if TYPE_CHECKING:
    from nanopod.client.sdk import Deployment


def stats(app: Deployment, function: str | None = None) -> dict[str, Any]:
    """Status, workers, slots, calls in flight, load per second and the reasons of the present scale.

    With `function`, what the deployment says of it besides. Raises `NotFound` for a deployment or function that is not.
    """
    from nanopod.client import deploying

    found = deploying.fetch(app)
    workers = [row for row in found.get("instances") or () if not row.get("ended_at")]
    ready = [row for row in workers if row.get("ready")]
    answer: dict[str, Any] = {
        "id": found.get("id"),
        "name": f"{found.get('name')}:{found.get('tag', 'default')}",
        "status": found.get("status"),
        "revision": found.get("revision_number"),
        "workers": len(workers),
        "ready": len(ready),
        "target": found.get("target_instance_count", 0),
        "slots": sum(int(row.get("slots") or 0) for row in ready),
        "in_flight": sum(int(row.get("in_flight") or 0) for row in ready),
        "perf": sum(float(row.get("perf") or 0.0) for row in ready) or None,
        "reasons": list(found.get("reasons") or ()),
        "failure": found.get("failure"),
    }
    if function is not None:
        specs = {row.get("name"): row for row in found.get("functions") or ()}
        if function not in specs:
            there = ", ".join(sorted(map(str, specs))) or "none"
            raise NotFound(f"{answer['name']} has no function {function}; it has {there}", field="function")
        answer["function"] = specs[function]
    return answer
