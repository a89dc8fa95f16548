"""One command that a machine runs to its end: what a batch job is made of. `cloud_init` carries it to the node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nanopod.model.endpoint import SecretRef, StorageSpec


@dataclass(frozen=True, slots=True)
class RunMount:
    """A volume, or a directory of it, at `path`; changes become its next version when the command succeeded.

    `volume` "": an empty directory that is gone with the machine.
    """

    path: str
    volume: str
    sub_path: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The command and what it finds. Its end is the end of the machine: exit status 0 is success."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRef, ...] = ()
    mounts: tuple[RunMount, ...] = ()
    storage: tuple[StorageSpec, ...] = ()
