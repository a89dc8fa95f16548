"""How an endpoint's workers are divided among its revisions: pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nanopod.scheduler.rollout.traffic import Share, needed


def workers(target: int, shares: Sequence[Share], main: str, asked: Collection[str] = ()) -> dict[str, int]:
    """{revision id: workers} for an endpoint with `target` workers. Revisions that are not named get none.

    Each share is rounded up, at least one worker where calls go. `main` (whose workers are there already) keeps all of
    the target, and the others what they have ready, until whoever needs more has it ready. A revision that no call
    reaches but by its tag has one worker until it was ready once, and then while it is in `asked`; without a tag it has
    only the first. A target of 0 leaves those that are asked for by their tag.
    """
    wanted: dict[str, int] = {}
    for share in shares:
        wanted[share.revision_id] = needed(target, share.workers)
        if not share.workers and ((target > 0 and not share.tried) or (share.tags and share.revision_id in asked)):
            wanted[share.revision_id] = 1
    lacking = {share.revision_id for share in shares if share.workers and share.ready < wanted[share.revision_id]}
    for share in shares:
        if target > 0 and lacking - {share.revision_id}:
            held = target if share.revision_id == main else min(target, share.ready)
            wanted[share.revision_id] = max(wanted[share.revision_id], held)
    return wanted
