"""The installation's settings of manifests: whose rules of scaling hold where a file names none, and how far."""

from __future__ import annotations

from typing import Final

from nanopod.model.endpoint import Profile
from nanopod.model.errors import Invalid
from nanopod.server.manifests.autoscaling import PROFILES
from nanopod.server.manifests.limits import LIMIT_MAX
from nanopod.store.transaction import Transaction

PROFILE: Final = "manifest_profile"
LIMIT: Final = "manifest_max_scale_limit"


def profile_of(read: Transaction) -> Profile:
    """Which profile objects have that name none."""
    stated = read.setting(PROFILE) or "auto"
    return stated if stated in PROFILES else "auto"  # type: ignore[return-value]


def limit_of(read: Transaction) -> int:
    """Workers that an object may be scaled to at most; 0: no limit."""
    stated = read.setting(LIMIT) or ""
    return int(stated) if stated.isdigit() else 0


def change(write: Transaction, profile: str | None, limit: int | None) -> None:
    """Set what is given. Raises `Invalid`."""
    if profile is not None and profile not in PROFILES:
        raise Invalid(f"profile: {profile!r} is not possible; choose one of {', '.join(PROFILES)}", field="profile")
    if limit is not None and not 0 <= limit <= LIMIT_MAX:
        raise Invalid(f"max_scale_limit: {limit} must be from 0 (no limit) to {LIMIT_MAX}", field="max_scale_limit")
    if profile is not None:
        write.put_setting(PROFILE, profile)
    if limit is not None:
        write.put_setting(LIMIT, str(limit))
