"""Prefixed object ids and the shape of API keys. Randomness and secrets are arguments: this room draws none."""

from __future__ import annotations

import re
import zlib
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Base 62, the alphabet of the random part of ids and keys."""

PREFIXES: Final[dict[str, str]] = {
    "workspace": "wksp_",
    "capacity": "cap_",
    "sku": "isku_",
    "endpoint": "endp_",
    "revision": "rev_",
    "deployment": "depl_",
    "instance": "inst_",
    "node": "node_",
    "machine": "machine_",
    "token": "tok_",
    "gateway": "gw_",
    "order": "ordr_",
    "contract": "cont_",
    "transfer": "cxfr_",
    "procurement": "proc_",
    "provider": "prov_",
    "offer": "offr_",
    "account": "acct_",
    "spot": "spot_",
    "template": "itmpl_",
    "image": "image_",
    "event": "evnt_",
    "exec": "exec_",
    "invoice": "inv_",
    "call": "call_",
    "schedule": "schd_",
    "secret": "sec_",
    "volume": "vol_",
    "dict": "dict_",
    "queue": "queue_",
    "session": "sess_",
    "manifest": "mfst_",
}
ALIASES: Final[dict[str, str]] = {
    "pool_": "cap_",
    "pxfr_": "cxfr_",
    "clus_": "isku_",
    "ntmpl_": "itmpl_",
    "vmi_": "image_",
    "vm_": "inst_",
}
"""Prefixes of earlier vocabularies, read as today's and never written."""
ID_LENGTH: Final = 21
NAME_PATTERN: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,254}")
"""What a name of an endpoint, tag, key, ... may look like."""

_KEY_PATTERN: Final = re.compile(r"sk_([a-z]{2,8})_([0-9A-Za-z]{8})_([0-9A-Za-z]{32})_([0-9a-f]{8})")


def base62(data: bytes, length: int) -> str:
    """`length` base-62 characters from at least `length` random bytes (256 mod 62 biases them by 1.2 %)."""
    assert len(data) >= length, "one random byte per character"
    return "".join(ALPHABET[byte % 62] for byte in data[:length])


def make_id(kind: str, random: bytes) -> str:
    """A new id of `kind` (a key of `PREFIXES`) from 21 random bytes."""
    return PREFIXES[kind] + base62(random, ID_LENGTH)


def make_key(random: bytes, env: str = "np") -> tuple[str, str]:
    """A new API key from 40 random bytes: (its public 8-character id, the key `sk_<env>_<id>_<secret>_<crc>`)."""
    key_id, secret = base62(random, 8), base62(random[8:], 32)
    body = f"sk_{env}_{key_id}_{secret}"
    return key_id, f"{body}_{zlib.crc32(body.encode()):08x}"


def key_id_of(key: str) -> str | None:
    """The public id inside an API key, or None when its shape or checksum is wrong (so no look-up is needed)."""
    found = _KEY_PATTERN.fullmatch(key)
    if found is None:
        return None
    body = key.rpartition("_")[0]
    return found[2] if f"{zlib.crc32(body.encode()):08x}" == found[4] else None
