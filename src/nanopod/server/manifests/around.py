"""What a document may refer to: objects of the same input, and those that were applied before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nanopod.model.endpoint import LoadedModel, Profile


@dataclass(frozen=True, slots=True)
class SecretSeen:
    """A Secret without its values. `keys` are the names of its pairs as they were written."""

    keys: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    kind: str = "Opaque"


@dataclass(frozen=True, slots=True)
class Around:
    """Everything by its name. Documents of the input come before those that are stored."""

    profile: Profile = "auto"
    """What an object has that names none itself: the server's setting `manifest_profile`."""
    secrets: Mapping[str, SecretSeen] = field(default_factory=dict)
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    accounts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """ServiceAccounts: names of the Secrets that are attached to each."""
    claims: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """PersistentVolumeClaims: their documents."""
    trained: Mapping[str, tuple[LoadedModel, ...]] = field(default_factory=dict)
    """Models of TrainedModels, by the InferenceService that loads them."""
    services: frozenset[str] = frozenset()
    """Names of all services and graphs, native endpoints included."""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """LLMInferenceServiceConfigs: their documents, for `baseRefs`."""


@dataclass(frozen=True, slots=True)
class SecretKey:
    """An environment variable whose value is one pair of a Secret."""

    variable: str
    secret: str
    key: str
