"""Where the server is and which key opens it: arguments, environment, configuration file, or a cloud running here.

| | first | then | then | last |
| --- | --- | --- | --- | --- |
| URL | argument | `NANOPOD_URL` | `url` in `config.json` | a cloud running in its `data_dir` or the default one |
| key | argument | `NANOPOD_API_KEY`, `NANOPOD_TOKEN` | file `api_key` | `VAST_API_KEY`, then that cloud's `admin.key` |

Files are in `$XDG_CONFIG_HOME/nanopod`, else `~/.config/nanopod`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanopod.model.errors import Invalid, Unauthenticated
from nanopod.model.layout import Layout

TRUTHS = frozenset({"1", "true", "yes", "on"})
FALSEHOODS = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the key for it. The key is not part of its text form."""

    url: str
    key: str

    def __repr__(self) -> str:
        return f"Target({self.url!r})"


def is_true(name: str) -> bool:
    """Whether an environment variable is set to anything but `0`, `false`, `no`, `off` or nothing."""
    return os.environ.get(name, "").strip().lower() not in FALSEHOODS


def config_directory() -> Path:
    """Where configuration files are."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "nanopod"


def data_directory() -> Path:
    """The default data directory of a cloud on this machine."""
    chosen = os.environ.get("NANOPOD_HOME")
    if not chosen:
        chosen = os.path.join(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "nanopod")
    return Path(chosen).expanduser().absolute()


def running_cloud(directory: Path) -> dict[str, Any] | None:
    """`up.json` of the cloud that runs in a data directory, or None when none does."""
    try:
        state = json.loads(Layout(directory).up_state.read_text())
        os.kill(int(state["pid"]), 0)
    except PermissionError:
        return state if isinstance(state, dict) else None  # it runs, as another user
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if state.get("url") else None


def find_url(explicit: str | None = None) -> str | None:
    """The server's URL, or None when none is configured and none runs here."""
    url = explicit or os.environ.get("NANOPOD_URL") or _profile().get("url")
    if url:
        return str(url).rstrip("/")
    for directory in _data_directories():
        state = running_cloud(directory)
        if state is not None:
            return str(state["url"]).rstrip("/")
    return None


def find_key(explicit: str | None = None, url: str | None = None) -> str:
    """The API key for `url`. Raises `Unauthenticated` when there is none."""
    path = config_directory() / "api_key"
    named = os.environ.get("NANOPOD_API_KEY") or os.environ.get("NANOPOD_TOKEN")
    key = explicit or named or _text(path) or os.environ.get("VAST_API_KEY")
    if not key:
        for directory in _data_directories():
            state = running_cloud(directory)
            if state is not None and str(state["url"]).rstrip("/") == url:
                key = _text(Path(state.get("key_file") or Layout(directory).admin_key))
    if not key:
        raise Unauthenticated(f"No API key found. Pass api_key=, set NANOPOD_API_KEY, or save your key to {path}")
    return key.strip()


def target(url: str | None = None, key: str | None = None) -> Target:
    """Server and key for commands. Raises `Invalid` when there is no server to talk to."""
    found = find_url(url)
    if found is None:
        raise Invalid("no nanopod server is known; start one with `nanopod up`, or set NANOPOD_URL", field="url")
    return Target(found, find_key(key, found))


def _data_directories() -> list[Path]:
    named = _profile().get("data_dir")
    return [*([Path(str(named)).expanduser()] if named else []), data_directory()]


def _profile() -> dict[str, Any]:
    path = config_directory() / "config.json"
    text = _text(path)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Invalid(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Invalid(f'{path} must hold an object such as {{"url": "http://127.0.0.1:8900"}}')
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
