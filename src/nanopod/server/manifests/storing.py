"""Where the files of a model come from: storageUri and its relatives, with what opens them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from nanopod.model.endpoint import StorageSpec, VolumeMount
from nanopod.node.storage.schemes import BadUri, parse, patterns
from nanopod.server.manifests.around import Around, SecretSeen
from nanopod.server.manifests.containers import Mounted
from nanopod.server.manifests.fields import Problems, Reader

TARGET: Final = "/mnt/models"
S3: Final = "serving.kserve.io/s3-"
FROM_ANNOTATIONS: Final[Mapping[str, str]] = {
    "endpoint": "S3_ENDPOINT",
    "region": "AWS_REGION",
    "verifyssl": "S3_VERIFY_SSL",
    "usehttps": "S3_USE_HTTPS",
    "usevirtualbucket": "S3_USE_VIRTUAL_BUCKET",
    "useanoncredential": "awsAnonymousCredential",
    "useaccelerate": "S3_USE_ACCELERATE",
    "cabundle": "AWS_CA_BUNDLE",
    "cabundle-configmap": "",
}
"""{annotation of a Secret after `serving.kserve.io/s3-`: the setting it is}."""


def storage_uri(reader: Reader, name: str) -> str:
    """A URI in a field, checked."""
    uri = reader.text(name)
    if uri:
        check_uri(reader.problems, reader.at(name), uri)
    return uri


def check_uri(problems: Problems, path: str, uri: str) -> None:
    """Note what is wrong with a URI."""
    try:
        parse(uri, "")
    except BadUri as error:
        problems.error(path, str(error).removeprefix(": "))


def read_storages(model: Reader) -> list[StorageSpec]:
    """`storageUri`, `storageUris` and `storage` of a model or framework."""
    found: list[StorageSpec] = []
    uri = storage_uri(model, "storageUri")
    if uri:
        found.append(StorageSpec(uri, TARGET))
    for one in model.objects("storageUris"):
        each = storage_uri(one, "uri") or one.text("uri", required=True, fix="say where the files are")
        path = one.text("mountPath", TARGET)
        one.done()
        if each:
            found.append(StorageSpec(each, path))
    storage = model.object("storage")
    if storage is not None:
        found += _keyed(storage)
    paths = [one.path for one in found]
    for path in sorted({one for one in paths if paths.count(one) > 1}):
        name = "storageUris" if model.has("storageUris") else "storageUri"
        model.error(name, f"two storages lead to {path}; give each a mountPath of its own")
    return found


def _keyed(storage: Reader) -> list[StorageSpec]:
    """`storage`: {storageUri} or {key, path, parameters: {type, bucket}} of the Secret `storage-config`."""
    uri, path, key = storage_uri(storage, "storageUri"), storage.text("path"), storage.text("key")
    parameters = storage.pairs("parameters")
    storage.ignored("models say what they take and give by themselves", "schemaPath")
    storage.done()
    if uri:
        return [StorageSpec(f"{uri.rstrip('/')}/{path.lstrip('/')}" if path else uri, TARGET, secret=key)]
    bucket, kind = parameters.get("bucket", ""), parameters.get("type", "s3")
    if kind not in ("s3", "gs"):
        storage.error("parameters", f"type {kind!r} is not available here; use s3 or gs, or give storageUri")
        return []
    if not bucket or not path:
        name = "path" if bucket else "parameters"
        storage.error(name, "is not enough; give storageUri, or path and parameters.bucket")
        return []
    rest = {name: value for name, value in parameters.items() if name not in ("type", "bucket")}
    named = {"endpoint_url": "S3_ENDPOINT", "region": "AWS_REGION"}
    options = {named.get(name, name): value for name, value in rest.items()}
    return [StorageSpec(f"{kind}://{bucket}/{path.lstrip('/')}", TARGET, secret=key, options=options)]


def opened(
    storages: Sequence[StorageSpec], env: Mapping[str, str], account: str, around: Around, problems: Problems, at: str
) -> tuple[StorageSpec, ...]:
    """Storages with the patterns and settings of the environment, and the Secret of the service account."""
    allow = _patterns(env, "STORAGE_ALLOW_PATTERNS", problems, at)
    ignore = _patterns(env, "STORAGE_IGNORE_PATTERNS", problems, at)
    secret = secret_of(account, around)
    made = []
    for one in storages:
        name = one.secret or secret
        seen = around.secrets.get(name, SecretSeen())
        if one.secret and one.secret not in around.secrets:
            problems.error(at, f"storage.key: there is no Secret {one.secret!r}; apply it first")
            name = ""
        options = {**options_of(seen.annotations), **one.options}
        made.append(replace(one, secret=name, allow=allow, ignore=ignore, options=options))
    return tuple(made)


def secret_of(account: str, around: Around) -> str:
    """The Secret of a service account that opens storage: the first that is no registry's."""
    for name in around.accounts.get(account, ()) if account else ():
        if name in around.secrets and around.secrets[name].kind != "kubernetes.io/dockerconfigjson":
            return name
    return ""


def options_of(annotations: Mapping[str, str]) -> dict[str, str]:
    """The settings in the annotations of a Secret."""
    found = {}
    for key, value in annotations.items():
        name = FROM_ANNOTATIONS.get(key.removeprefix(S3), "") if key.startswith(S3) else ""
        if name:
            found[name] = value
    return found


def _patterns(env: Mapping[str, str], name: str, problems: Problems, at: str) -> tuple[str, ...]:
    try:
        return patterns(env.get(name, ""), name)
    except BadUri as error:
        problems.error(at, str(error))
        return ()


def mounted(
    mounts: Sequence[Mounted], storages: Sequence[StorageSpec], around: Around, problems: Problems, at: str
) -> tuple[tuple[VolumeMount, ...], tuple[StorageSpec, ...]]:
    """What a container mounts, as volumes and as small files that are written."""
    volumes: dict[str, VolumeMount] = {}
    files: list[StorageSpec] = []
    for one in mounts:
        if one.claim:
            if one.claim not in around.claims:
                problems.error(at, f"there is no PersistentVolumeClaim {one.claim!r}; apply it first")
            if one.sub_path or one.claim in volumes:
                files.append(StorageSpec(f"pvc://{one.claim}/{one.sub_path}".rstrip("/"), one.path))
            else:
                volumes[one.claim] = VolumeMount(one.path, one.claim, read_only=one.read_only)
        elif one.config_map:
            files += _config(one, around, problems, at)
        elif one.secret:
            files += _secret(one, around, problems, at)
    for storage in storages:
        if storage.uri.startswith("pvc://"):
            claim = storage.uri.removeprefix("pvc://").partition("/")[0]
            if claim and claim not in around.claims:
                problems.error(at, f"there is no PersistentVolumeClaim {claim!r}; apply it first")
    return tuple(volumes.values()), tuple(files)


def _config(one: Mounted, around: Around, problems: Problems, at: str) -> list[StorageSpec]:
    data = around.config_maps.get(one.config_map)
    if data is None:
        problems.error(at, f"there is no ConfigMap {one.config_map!r}; apply it first")
        return []
    names = one.items or {key: key for key in data}
    lacking = [key for key in names if key not in data]
    if lacking:
        there = ", ".join(data) or "none"
        problems.error(at, f"ConfigMap {one.config_map!r} has no key {lacking[0]!r}; it has {there}")
    written = {file: f"text:{data[key]}" for key, file in names.items() if key in data}
    path = one.path
    if one.sub_path:
        directory, _, file = one.path.rpartition("/")
        written = dict.fromkeys([file] if one.sub_path in written else [], written.get(one.sub_path, ""))
        path = directory or "/"
    return [StorageSpec(f"config://{one.config_map}", path, options=written)] if written else []


def _secret(one: Mounted, around: Around, problems: Problems, at: str) -> list[StorageSpec]:
    if one.secret not in around.secrets:
        problems.error(at, f"there is no Secret {one.secret!r}; apply it first")
        return []
    if one.items and any(key != file for key, file in one.items.items()):
        problems.warn(at, f"the files of Secret {one.secret!r} keep the names of their keys")
    return [StorageSpec(f"secret://{one.secret}", one.path, secret=one.secret, allow=tuple(one.items))]
