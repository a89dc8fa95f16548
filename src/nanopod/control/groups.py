"""The revisions that an endpoint's deployment runs side by side, and how many workers each shall have: pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nanopod.model.chain import Deployment, Instance, Revision
from nanopod.scheduler.rollout.shares import workers
from nanopod.scheduler.rollout.traffic import Share


@dataclass(frozen=True, slots=True)
class Group:
    """A revision with the instances of it that run, and how many there shall be."""

    revision: Revision
    running: Sequence[Instance]
    want: int
    whose: str = ""
    """For messages: "" for the one that the deployment runs, else ` of revision 7`."""

    @property
    def missing(self) -> int:
        """Instances that are to be made."""
        return max(0, self.want - len(self.running))

    @property
    def surplus(self) -> int:
        """Instances that are too many."""
        return max(0, len(self.running) - self.want)


def groups(
    deployment: Deployment, revision: Revision, running: Sequence[Instance], shares: Sequence[Share],
    revisions: Mapping[str, Revision], asked: Collection[str] = (),
) -> list[Group]:  # fmt: skip
    """Every revision that shall have workers now, the one that the deployment runs first.

    Without shares that is `revision` alone, which the deployment runs. Instances of any other revision are of an
    earlier one: they go as those of the groups become ready. `asked` are revisions that are called for by a tag.
    """
    target = deployment.target_instance_count
    wants = workers(target, shares, revision.revision_id, asked) if shares else {revision.revision_id: target}
    by_revision: dict[str, list[Instance]] = {}
    for instance in running:
        by_revision.setdefault(instance.revision_id, []).append(instance)
    found: list[Group] = []
    for revision_id, want in wants.items():
        own = revision_id == revision.revision_id
        of = revision if own else revisions.get(revision_id)
        if of is not None and want:
            whose = "" if own else f" of revision {of.number}"
            found.append(Group(of, by_revision.get(revision_id, []), want, whose))
    return sorted(found, key=lambda group: group.revision.revision_id != revision.revision_id)
