"""URIs of storage: what each form means, and which files below one are taken. Pure.

| URI | what it names |
| --- | --- |
| `s3://bucket/prefix`, `gs://bucket/prefix` | all objects below the prefix, at a path boundary |
| `hf://owner/model[:revision]` | a repository of a Hugging Face hub |
| `https://host/path/file`, `http://...` | one file; an archive is unpacked |
| `https://host/path/name.git[#branch]` | a Git repository |
| `https://ACCOUNT.blob.core.windows.net/container/prefix` | blobs of Azure below the prefix |
| `pvc://volume/path` | a directory of a volume of the workspace, mounted and not copied |
| `file:///directory` | a directory of the node, where its operator allows it |
| `config://name`, `secret://name` | small files of a ConfigMap (in `options`) or of a secret |

A prefix matches at a path boundary: `s3://b/model` takes `model` and `model/x`, never `model-2/x`.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

Scheme = Literal["s3", "gs", "hf", "web", "git", "azure", "pvc", "file", "config", "secret"]

NOT_HERE: Final = ("oci", "oci+native", "oci+fetch", "modelscope", "hdfs", "webhdfs")
"""Known elsewhere; nodes have no adapter for them."""
AVAILABLE: Final = (
    "s3://bucket/prefix, gs://bucket/prefix, hf://owner/model[:revision], https://host/path/file, "
    "https://host/name.git, https://ACCOUNT.blob.core.windows.net/container/prefix, pvc://volume/path, file:///path"
)
PATTERNS_MAX: Final = 100
PATH_CHARS_MAX: Final = 1024
NAME_BYTES_MAX: Final = 255
URI_CHARS_MAX: Final = 4096
AZURE: Final = ".blob.core.windows.net"
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,221}")
_HF_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


class BadUri(ValueError):
    """A URI, path or pattern that cannot be used; the message names the field and the fix."""


@dataclass(frozen=True, slots=True)
class Place:
    """A URI taken apart. `shown` has nothing secret in it."""

    scheme: Scheme
    shown: str
    host: str
    """Bucket, host, `owner/model`, volume or name."""
    path: str = ""
    """Below the host, without slashes around it."""
    ref: str = ""
    """Revision of a hub's model, or branch of a Git repository; "": its main one."""
    query: str = ""
    """What follows `?`: may sign the URL, so it is never shown."""
    secure: bool = True
    """https."""


def parse(uri: str, field: str = "storage.uri") -> Place:
    """Take a URI apart. Raises `BadUri` naming `field`, what is wrong and what would do."""
    if not uri or len(uri) > URI_CHARS_MAX or any(ord(letter) < 33 for letter in uri):
        raise BadUri(f"{field}: give a URI without blanks, one of {AVAILABLE}")
    scheme, colon, _ = uri.partition("://")
    scheme = scheme.lower()
    shown = uri.partition("?")[0]
    if not colon:
        raise BadUri(f"{field}: {shown!r} has no scheme; give one of {AVAILABLE}")
    if scheme in NOT_HERE:
        raise BadUri(f"{field}: {shown}: scheme not available here: {scheme}; use one of {AVAILABLE}")
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadUri(f"{field}: {shown!r} is not a URI: {error}") from None
    if "@" in parts.netloc:
        raise BadUri(f"{field}: a URI must hold no credentials; keep them in a secret and name it")
    if scheme in ("s3", "gs"):
        return _bucket("s3" if scheme == "s3" else "gs", uri, shown, field)
    if scheme == "hf":
        return _hub(uri, field)
    if scheme in ("http", "https"):
        return _web(scheme, host, port, parts.path, parts.query, parts.fragment, shown, field)
    if scheme == "pvc":
        path = inside(unquote(parts.path), field)
        if not _NAME.fullmatch(parts.netloc):
            raise BadUri(f"{field}: {shown}: name a volume: pvc://volume/path")
        return Place("pvc", shown, parts.netloc, path)
    if scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise BadUri(f"{field}: {shown}: give an absolute path: file:///directory")
        return Place("file", shown, "", inside(unquote(parts.path), field))
    if scheme in ("config", "secret"):
        if not _NAME.fullmatch(parts.netloc):
            raise BadUri(f"{field}: {shown}: give a name: {scheme}://name")
        return Place("config" if scheme == "config" else "secret", shown, parts.netloc)
    raise BadUri(f"{field}: {shown}: scheme {scheme[:20]!r} is not known; use one of {AVAILABLE}")


def _bucket(scheme: Literal["s3", "gs"], uri: str, shown: str, field: str) -> Place:
    # Keys may hold ? and #, which mean nothing to a bucket: they are taken as they are.
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise BadUri(f"{field}: {shown}: {bucket!r} cannot be a bucket; write {scheme}://bucket/prefix")
    return Place(scheme, uri, bucket, key.strip("/"))


def _hub(uri: str, field: str) -> Place:
    name, _, revision = uri.partition("://")[2].partition(":")
    parts = name.split("/")
    if len(parts) != 2 or not all(_HF_PART.fullmatch(part) for part in parts):
        raise BadUri(f"{field}: {uri}: write exactly owner and model: hf://owner/model or hf://owner/model:revision")
    if ":" in uri.partition("://")[2] and not _REVISION.fullmatch(revision):
        raise BadUri(f"{field}: {uri}: the revision after ':' must be a branch, tag or commit")
    return Place("hf", uri, name, ref=revision)


def _web(
    scheme: str, host: str, port: int | None, path: str, query: str, fragment: str, shown: str, field: str
) -> Place:
    where = f"[{host}]" if ":" in host else host
    whole = f"{where}:{port}" if port else where
    if not host:
        raise BadUri(f"{field}: {shown}: it names no host")
    plain = inside(unquote(path), field)
    shown = shown.partition("#")[0]
    if path.endswith(".git"):
        if scheme != "https":
            raise BadUri(f"{field}: {shown}: Git repositories are cloned over https only; write https://")
        return Place("git", shown, whole, path.strip("/"), ref=_branch(fragment, shown, field))
    if host.endswith(".file.core.windows.net"):
        raise BadUri(f"{field}: {shown}: scheme not available here: Azure file shares; copy it to a blob container")
    if host.endswith(AZURE):
        if not plain:
            raise BadUri(f"{field}: {shown}: name a container: https://ACCOUNT{AZURE}/container/prefix")
        return Place("azure", shown, whole, plain, query=query, secure=scheme == "https")
    if not plain or path.endswith("/"):
        raise BadUri(
            f"{field}: {shown}: a file name is required in the path; a web server's directories cannot be listed"
        )
    return Place("web", shown, whole, path.lstrip("/"), query=query, secure=scheme == "https")


def _branch(fragment: str, shown: str, field: str) -> str:
    if fragment and not _REVISION.fullmatch(fragment):
        raise BadUri(f"{field}: {shown}: the part after # must be a branch or tag")
    return fragment


def inside(path: str, field: str = "path") -> str:
    """`path` without slashes around it. Raises `BadUri` for one that leads out or cannot be."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path or "\\" in path or len(path) > PATH_CHARS_MAX:
        raise BadUri(f"{field}: {path[:80]!r} leads out of its directory or cannot be a path; give one without ..")
    if any(
        len(part) > NAME_BYTES_MAX // 4 and len(part.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX
        for part in parts
    ):
        raise BadUri(f"{field}: {path[:80]!r} has a name of more than {NAME_BYTES_MAX} bytes, which no file can have")
    return "/".join(parts)


def target(path: str, field: str = "storage.path") -> str:
    """Where a storage goes, as given but normal. Raises `BadUri`."""
    plain = inside(path, field)
    if not plain:
        raise BadUri(f"{field}: {path!r} is no directory of its own; give one such as /mnt/models")
    return posixpath.normpath(f"/{plain}" if path.startswith("/") else plain)


def below(key: str, prefix: str) -> str | None:
    """The path of an object below a prefix; None when it is not below it, or only stands for a directory.

    The object at the prefix itself keeps its last name.
    """
    if key.endswith("/"):
        return None
    if not prefix:
        return key
    if key == prefix:
        return posixpath.basename(key)
    return key[len(prefix) + 1 :] if key.startswith(f"{prefix}/") else None


def patterns(text: str, field: str = "STORAGE_ALLOW_PATTERNS") -> tuple[str, ...]:
    """Patterns as environment variables hold them: a JSON list of text, or a list with commas. Raises `BadUri`."""
    text = text.strip()
    if text.startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise BadUri(f"{field}: it begins like a JSON list and is none: {error}") from None
        if not all(isinstance(one, str) for one in found):
            raise BadUri(f'{field}: a list of text is needed, such as ["*.json", "*.safetensors"]')
        listed = [one.strip() for one in found]
    else:
        listed = [one.strip() for one in text.split(",")]
    if len(listed) > PATTERNS_MAX:
        raise BadUri(f"{field}: {len(listed)} patterns; at most {PATTERNS_MAX}")
    return tuple(one for one in listed if one)


def wanted(path: str, allow: Sequence[str], ignore: Sequence[str]) -> bool:
    """True for a relative path that some pattern allows (or none is given) and none ignores; as `fnmatch` has it."""
    if allow and not any(fnmatchcase(path, one) for one in allow):
        return False
    return not any(fnmatchcase(path, one) for one in ignore)
