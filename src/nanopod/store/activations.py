"""Leased, level-triggered activations: who has to look at which object, and when.

A signal is written in the transaction of the change it announces, so none is lost; claims take a lease, so a process
that dies in the middle only delays what it held; a signal that comes while its object is being worked on makes it due
again at once. The statements hold for SQLite and PostgreSQL alike.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from nanopod.store.base import Base

CLAIM_MAX: Final = 20

_CLAIM: Final = text(
    "UPDATE activation SET lock_token = :token, lock_owner = :owner, lock_expires_us = :expires "
    "WHERE (kind, key) IN (SELECT kind, key FROM activation WHERE kind = :kind AND due_us <= :now "
    "AND (lock_expires_us IS NULL OR lock_expires_us < :now) ORDER BY due_us LIMIT :n) RETURNING key, seq, fails"
)
_SIGNAL: Final = text(
    "INSERT INTO activation (kind, key, due_us) VALUES (:kind, :key, :now) ON CONFLICT (kind, key) DO UPDATE SET "
    "seq = activation.seq + 1, "
    "due_us = CASE WHEN activation.due_us < excluded.due_us THEN activation.due_us ELSE excluded.due_us END"
)
_FINISH: Final = text(
    "UPDATE activation SET lock_token = NULL, lock_owner = NULL, lock_expires_us = NULL, fails = :fails, "
    "due_us = CASE WHEN seq = :seq THEN CAST(:next AS BIGINT) ELSE CAST(:now AS BIGINT) END "
    "WHERE kind = :kind AND key = :key AND lock_token = :token RETURNING due_us"
)
_DROP: Final = text("DELETE FROM activation WHERE kind = :kind AND key = :key AND lock_token = :token AND seq = :seq")
_RELEASE: Final = text(
    "UPDATE activation SET lock_token = NULL, lock_owner = NULL, lock_expires_us = NULL "
    "WHERE lock_owner IS NOT NULL AND lock_owner <> :owner"
)


def micros(at: float) -> int:
    """Unix seconds as whole microseconds."""
    return int(at * 1_000_000)


class ActivationRows(Base):
    """The queue of the reconcilers."""

    def signal(self, kind: str, key: str, now: float) -> None:
        """Somebody has to look at this object now. Part of the transaction that changed it."""
        self.connection.execute(_SIGNAL, {"kind": kind, "key": key, "now": micros(now)})
        self.hint(kind)

    def claim(
        self, kind: str, token: str, owner: str, now: float, lease_s: float, limit: int = CLAIM_MAX
    ) -> list[tuple[str, int, int]]:
        """Take what is due: (key, sequence number, failures in a row) of at most `limit` objects."""
        values = {
            "kind": kind,
            "token": token,
            "owner": owner,
            "now": micros(now),
            "expires": micros(now + lease_s),
            "n": limit,
        }
        return [(row.key, row.seq, row.fails) for row in self.connection.execute(_CLAIM, values)]

    def finish(
        self, kind: str, key: str, token: str, seq: int, now: float, next_at: float, fails: int = 0
    ) -> float | None:
        """Give the object back, due again at `next_at`, or at once when it was signalled meanwhile.

        Returns when it is due; None when the lease was lost.
        """
        values = {"kind": kind, "key": key, "token": token, "seq": seq, "fails": fails}
        row = self.connection.execute(_FINISH, {**values, "now": micros(now), "next": micros(next_at)}).first()
        return row.due_us / 1_000_000 if row else None

    def drop(self, kind: str, key: str, token: str, seq: int) -> None:
        """The object is gone: nobody has to look any more, unless it was signalled meanwhile."""
        self.connection.execute(_DROP, {"kind": kind, "key": key, "token": token, "seq": seq})

    def release_others(self, owner: str) -> None:
        """Take back what an earlier process of this store held: the exclusive lock proves that it is gone."""
        self.connection.execute(_RELEASE, {"owner": owner})
