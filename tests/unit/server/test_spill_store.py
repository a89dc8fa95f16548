"""Large payloads in the server: what is swept, and how references are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanopod.model import spill
from nanopod.model.errors import Invalid, SerializationError
from nanopod.server.api.spills import sweep


def test_only_what_nobody_put_for_long_is_swept(tmp_path: Path) -> None:
    for name, age_s in (("aa/old", 5000), ("aa/new", 10), ("bb/older", 9000)):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
        os.utime(file, (1e9 - age_s, 1e9 - age_s))
    assert sweep(tmp_path, 1e9 - 1000) == 2
    assert [file.name for file in tmp_path.glob("*/*")] == ["new"]
    assert sweep(tmp_path / "nowhere", 1e9) == 0


def test_a_reference_finds_its_payload_again_and_no_other() -> None:
    reference = spill.refer(b"large", "the arguments of f")
    travels = spill.encode(reference)
    assert spill.decode(travels) == reference and spill.decode(b"\x93large") is None
    assert spill.check(reference, b"large") == b"large"
    with pytest.raises(SerializationError, match="arrived damaged"):
        spill.check(reference, b"Large")
    for broken in (travels[:-3], spill.SPILLED + b"nonsense", travels.replace(b"0", b"/").replace(b"a", b"/")):
        with pytest.raises(SerializationError):
            spill.decode(broken)


def test_there_is_a_limit_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "SPILL_BYTES_MAX", 1 << 20)
    with pytest.raises(Invalid, match="volume or bucket") as caught:
        spill.refer(bytes(3 << 20), "the arguments of f")
    assert caught.value.field == "args"
