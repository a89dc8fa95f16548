"""Objects of buckets: S3 and what speaks like it (by boto3), and Google Cloud Storage (its JSON API)."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from nanopod.model.addresses import is_link_local
from nanopod.node.storage import schemes
from nanopod.node.storage.errors import Broken, StorageFailed
from nanopod.node.storage.schemes import Place
from nanopod.node.storage.streams import CONNECT_S_MAX, READ_S_MAX, Remote, Stream, document, stream

Settings = Mapping[str, str]
"""Of one storage: `StorageSpec.options`, then the pairs of its secret."""
OBJECTS_MAX: Final = 100_000
NODE_CREDENTIALS: Final = "NANOPOD_STORAGE_NODE_CREDENTIALS"
"""Environment of the agent: "1" lets storages without credentials use those of the node (S3)."""
GOOGLE: Final = "https://storage.googleapis.com"
GOOGLE_KEYS: Final = ("gcloud-application-credentials.json", "GOOGLE_APPLICATION_CREDENTIALS_JSON")
GOOGLE_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_only"
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_TRUE: Final = ("1", "true", "yes", "on")


def setting(settings: Settings, *names: str) -> str:
    """The first of several names that is set."""
    return next((value for name in names if (value := settings.get(name, ""))), "")


def flag(settings: Settings, *names: str) -> bool | None:
    """A setting that is true or false; None when it is not set."""
    found = setting(settings, *names)
    return found.strip().lower() in _TRUE if found else None


def listed(rows: list[Remote], place: Place) -> list[Remote]:
    """The objects of a listing. Raises `StorageFailed` when there are none or too many."""
    if not rows:
        raise StorageFailed(f"{place.shown} holds no files; check the bucket and the prefix")
    if len(rows) > OBJECTS_MAX:
        raise StorageFailed(f"{place.shown} holds more than {OBJECTS_MAX} files; name a longer prefix")
    return rows


def path_of(key: str, place: Place) -> str | None:
    """Where an object goes; None for one that is not below the prefix. Raises `StorageFailed`."""
    found = schemes.below(key, place.path)
    if found is None:
        return None
    try:
        return schemes.inside(found)
    except schemes.BadUri as error:
        raise StorageFailed(f"{place.shown}: the object {key[:200]!r}: {error}") from None


# --- S3 ---


def s3(place: Place, settings: Settings) -> list[Remote]:
    """The objects below an S3 prefix. Raises `StorageFailed` or `Broken`."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise StorageFailed("s3:// needs boto3 on the node: pip install 'nanopod[s3]'", user_fault=False) from None
    client, endpoint = _s3_client(settings)
    rows: list[Remote] = []
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=place.host, Prefix=place.path):
            for row in page.get("Contents", ()):
                key = str(row["Key"])
                path = path_of(key, place)
                if path and len(rows) <= OBJECTS_MAX:
                    rows.append(_s3_object(client, place, endpoint, key, path, row))
    except (BotoCoreError, ClientError) as error:
        raise _s3_trouble(place.shown, error) from None
    return listed(rows, place)


def _s3_object(
    client: Any, place: Place, endpoint: str, key: str, path: str, row: Mapping[str, Any]
) -> Remote:  # fmt: skip
    from botocore.exceptions import BotoCoreError, ClientError

    mark = str(row.get("ETag") or "").strip('"')

    def get(start: int, _mark: str) -> Stream:
        given: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        if mark:
            given["IfMatch"] = f'"{mark}"'
        try:
            found = client.get_object(Bucket=place.host, Key=key, **given)
        except (BotoCoreError, ClientError) as error:
            raise _s3_trouble(f"s3://{place.host}/{key}", error) from None
        # Only content that is neither in parts nor encrypted by a key of its own has its MD5 as its tag.
        plain = found.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in found
        digest = ("md5", mark) if plain and _MD5.fullmatch(mark) else None
        begins = start if "ContentRange" in found else 0
        return Stream(_S3Body(found["Body"]), begins, begins + int(found["ContentLength"]), mark, digest)

    return Remote(path, f"s3 {endpoint} {place.host} {key}", get, int(row.get("Size", 0)), mark)


class _S3Body:
    """A body whose errors are those of any connection."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def read(self, amount: int = -1) -> bytes:
        """At most so many bytes."""
        try:
            return bytes(self._body.read(amount))
        except Exception as error:  # botocore and urllib3 have a dozen of them
            raise Broken(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        """Let go of the connection."""
        self._body.close()


def _s3_client(settings: Settings) -> tuple[Any, str]:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    secure = flag(settings, "S3_USE_HTTPS") is not False
    endpoint = setting(settings, "S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if endpoint and "://" not in endpoint:
        endpoint = f"{'https' if secure else 'http'}://{endpoint}"
    _check_endpoint(endpoint)
    virtual = flag(settings, "S3_USER_VIRTUAL_BUCKET", "S3_USE_VIRTUAL_BUCKET")
    access = setting(settings, "awsAccessKeyID", "AWS_ACCESS_KEY_ID")
    secret = setting(settings, "awsSecretAccessKey", "AWS_SECRET_ACCESS_KEY")
    own = os.environ.get(NODE_CREDENTIALS) == "1"
    unsigned = flag(settings, "awsAnonymousCredential") or (not access and not own)
    style = "auto" if virtual is None else "virtual" if virtual else "path"
    options: dict[str, Any] = {"signature_version": UNSIGNED} if unsigned else {}
    config = Config(
        connect_timeout=CONNECT_S_MAX, read_timeout=READ_S_MAX, retries={"total_max_attempts": 1},
        s3={"addressing_style": style}, max_pool_connections=16, **options,
    )  # fmt: skip
    verify: bool | str | None = flag(settings, "S3_VERIFY_SSL")
    if verify is not False and (bundle := setting(settings, "AWS_CA_BUNDLE")):
        verify = bundle
    keys = {
        "aws_access_key_id": access,
        "aws_secret_access_key": secret,
        "aws_session_token": setting(settings, "AWS_SESSION_TOKEN"),
    }
    client = boto3.session.Session().client(
        "s3", region_name=setting(settings, "AWS_REGION", "AWS_DEFAULT_REGION") or None, endpoint_url=endpoint or None,
        config=config, verify=verify, **({name: value for name, value in keys.items() if value and not unsigned}),
    )  # fmt: skip
    return client, endpoint


def _check_endpoint(endpoint: str) -> None:
    """Raises `StorageFailed` for an endpoint that is no place for models; one that is not found is told later."""
    with contextlib.suppress(OSError, ValueError):
        for found in socket.getaddrinfo(urlsplit(endpoint).hostname or "", None) if endpoint else ():
            if is_link_local(str(found[4][0])):
                raise StorageFailed("S3_ENDPOINT: storage is not fetched from link-local addresses")


def _s3_trouble(what: str, error: Exception) -> Exception:
    said = getattr(error, "response", {}) or {}
    status = int(said.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    code = str(said.get("Error", {}).get("Code", ""))
    if status == 404:
        return StorageFailed(f"{what} does not exist ({code or 'HTTP 404'}); check the bucket and the prefix")
    if status == 412:
        return Broken(f"{what} changed while it was fetched")
    if status in (400, 401, 403):
        return StorageFailed(
            f"{what} may not be read ({code or status}); give awsAccessKeyID and awsSecretAccessKey in storage.secret, "
            "and check S3_ENDPOINT and AWS_REGION"
        )
    return Broken(f"{what}: {code or error}")


# --- Google Cloud Storage ---


def gs(place: Place, settings: Settings) -> list[Remote]:
    """The objects below a prefix of Google Cloud Storage. Raises `StorageFailed` or `Broken`."""
    base = setting(settings, "STORAGE_EMULATOR_HOST") or os.environ.get("STORAGE_EMULATOR_HOST", "") or GOOGLE
    base = (base if "://" in base else f"http://{base}").rstrip("/")
    headers = _google(settings)
    rows: list[Remote] = []
    token = ""
    while len(rows) <= OBJECTS_MAX:
        asked = {"prefix": place.path, "fields": "nextPageToken,items(name,size,md5Hash,generation)"}
        if token:
            asked["pageToken"] = token
        url = f"{base}/storage/v1/b/{quote(place.host)}/o?{urlencode(asked)}"
        try:
            found = json.loads(document(url, headers(), place.shown))
            for row in found.get("items", ()):
                name = str(row["name"])
                if path := path_of(name, place):
                    rows.append(_gs_object(base, place, headers, name, path, row))
            token = str(found.get("nextPageToken") or "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Broken(f"{place.shown}: the listing is not understood: {error!r}") from None
        if not token:
            break
    return listed(rows, place)


def _gs_object(
    base: str, place: Place, headers: Any, name: str, path: str, row: Mapping[str, Any]
) -> Remote:  # fmt: skip
    generation = str(row.get("generation") or "")
    url = f"{base}/storage/v1/b/{quote(place.host)}/o/{quote(name, safe='')}?alt=media"
    url += f"&generation={quote(generation)}" if generation else ""
    digest: tuple[str, str] | None = None
    with contextlib.suppress(binascii.Error, ValueError):
        if row.get("md5Hash"):
            digest = ("md5", base64.b64decode(str(row["md5Hash"])).hex())

    def get(start: int, _mark: str) -> Stream:
        return stream(url, headers(), f"gs://{place.host}/{name}", start, digest=digest)

    mark = generation or (digest[1] if digest else "")
    return Remote(path, f"gs {base} {place.host} {name}", get, int(row.get("size", 0)), mark, digest)


def _google(settings: Settings) -> Any:
    """Gives the headers of requests: those of a service account whose key is a pair of the secret, else none."""
    text = setting(settings, *GOOGLE_KEYS)
    token = setting(settings, "GOOGLE_OAUTH_ACCESS_TOKEN")
    if not text:
        return lambda: {"Authorization": f"Bearer {token}"} if token else {}
    try:
        key = json.loads(text)
        account = _Account(str(key["client_email"]), str(key["private_key"]), str(key["token_uri"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageFailed(
            f"storage.secret: {GOOGLE_KEYS[0]} must be the JSON key of a service account, with client_email, "
            f"private_key and token_uri ({type(error).__name__})"
        ) from None
    return account.headers


class _Account:
    """A service account's access token, asked for by a signed statement (RFC 7523) and kept for its hour."""

    def __init__(self, email: str, private_key: str, token_uri: str) -> None:
        self._email, self._private_key, self._token_uri = email, private_key, token_uri
        self._token, self._until = "", 0.0
        self._lock = threading.Lock()

    def headers(self) -> dict[str, str]:
        """With a token that is valid. Raises `StorageFailed` or `Broken`."""
        with self._lock:
            if time.time() > self._until - 60:
                self._renew()
            return {"Authorization": f"Bearer {self._token}"}

    def _renew(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        now = int(time.time())
        claims = {
            "iss": self._email, "scope": GOOGLE_SCOPE, "aud": self._token_uri, "iat": now, "exp": now + 3600,
        }  # fmt: skip
        head = b".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
        try:
            key = load_pem_private_key(self._private_key.encode(), None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, RSAPrivateKey):
            raise StorageFailed(f"storage.secret: private_key of {GOOGLE_KEYS[0]} is no RSA key in PEM form")
        signed = head + b"." + _base64(key.sign(head, PKCS1v15(), SHA256()))
        form = urlencode({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": signed.decode()})
        raw = document(self._token_uri, {}, "the token of the service account", form.encode())
        try:
            found = json.loads(raw)
            self._token, self._until = str(found["access_token"]), time.time() + float(found.get("expires_in", 3600))
        except (ValueError, KeyError, TypeError):
            raise Broken("the token of the service account: the answer is not understood") from None


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
