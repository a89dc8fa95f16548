"""Tickets for calls over plain HTTP: short-lived, signed over every field, good for one call.

A route's answer is a ticket with its signature; the call sends it back. Sessions bind the ticket that opened them.
Genuine Vast workers check another signature, RSA over the worker's url alone, which is made here as well.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nanopod.model.errors import Unauthenticated

LIFETIME_S: Final = 30.0
SPENT_MAX: Final = 100_000
_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode


class Ticket(msgspec.Struct, frozen=True):
    """What a holder may do once: one call of `cost` units of load at `url`, until `expires_at` (Unix seconds)."""

    deployment: int
    endpoint: str
    version: str
    url: str
    cost: float
    request_idx: int
    principal: str
    issued_at: float
    expires_at: float
    nonce: str


class Tickets:
    """Signs tickets and remembers those that were spent until they would have expired anyway."""

    def __init__(self, secret: bytes) -> None:
        seed = HKDF(hashes.SHA256(), 32, None, b"nanopod call tickets").derive(secret)
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._spent: set[str] = set()
        self._order: list[tuple[float, str]] = []

    def sign(self, ticket: Ticket) -> str:
        """The signature (base64) over all fields."""
        return base64.b64encode(self._key.sign(_encode(ticket))).decode()

    def check(self, ticket: Ticket, signature: str, now: float) -> None:
        """Raise `Unauthenticated` unless it is ours, of now, and not spent yet; spends it."""
        try:
            self._key.public_key().verify(base64.b64decode(signature, validate=True), _encode(ticket))
        except (InvalidSignature, ValueError):
            raise Unauthenticated("the ticket's signature does not fit its fields; ask /route/ for one") from None
        if now >= ticket.expires_at:
            raise Unauthenticated("the ticket has expired; ask /route/ for another")
        while self._order and self._order[0][0] <= now:
            self._spent.discard(heapq.heappop(self._order)[1])
        if ticket.nonce in self._spent:
            raise Unauthenticated("the ticket was used already; ask /route/ for one per call")
        if len(self._order) >= SPENT_MAX:
            raise Unauthenticated("too many tickets at once; ask /route/ again in a few seconds")
        self._spent.add(ticket.nonce)
        heapq.heappush(self._order, (ticket.expires_at, ticket.nonce))


class WorkerSigner:
    """The RSA key whose public half genuine workers fetch; they check that a call's url was signed with it."""

    def __init__(self, pem: bytes) -> None:
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, rsa.RSAPrivateKey), "written by new_key()"
        self._key = key
        self.public_pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def certificate(self, now: float) -> bytes:
        """A self-signed certificate of this key as PEM, good for ten years; clients fetch one before they call."""
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nanopod")])
        begin = datetime.fromtimestamp(now, UTC) - timedelta(days=1)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def sign(self, url: str) -> str:
        """Base64 of the PKCS#1 v1.5 signature over the url's canonical JSON."""
        text = json.dumps({"url": url}, indent=4, sort_keys=True)
        return base64.b64encode(self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())).decode()


def new_key() -> bytes:
    """A fresh RSA key as PEM."""
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def derived(secret: bytes, purpose: str) -> str:
    """A key (hex) for one purpose that nobody can make without the cluster's secret."""
    return hmac.digest(secret, purpose.encode(), hashlib.sha256).hex()


def ticket_of(fields: Mapping[str, Any]) -> Ticket:
    """The ticket inside a call's `auth_data`. Raises `Unauthenticated`."""
    try:
        return msgspec.convert(fields, Ticket)
    except msgspec.ValidationError:
        raise Unauthenticated("the call carries no ticket; send the whole answer of /route/ as auth_data") from None
