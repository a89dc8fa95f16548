"""Images of machines: what is unpacked, what links mean, and that nothing leads out."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.node import image
from nanopod.node.image import ImageError

Entry = tuple[str, bytes, bytes | str]
"""Path, type, content or link."""


def archive(path: Path, entries: list[Entry], mode: Any = "w") -> str:
    with tarfile.open(path, mode) as tar:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = kind, 0o4777
            if isinstance(content, str):
                entry.linkname = content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack(tmp_path: Path, entries: list[Entry], mode: str = "w") -> Path:
    digest = archive(tmp_path / "a.tar", entries, mode)
    image.unpack(tmp_path / "a.tar", digest, tmp_path / "root" / "image")
    return tmp_path / "root" / "image"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_files_links_and_devices(tmp_path: Path, mode: str) -> None:
    entries: list[Entry] = [
        ("./usr", tarfile.DIRTYPE, b""),
        ("./usr/lib/a", tarfile.REGTYPE, b"data"),
        ("lib", tarfile.SYMTYPE, "/usr/lib"),
        ("usr/bin/b", tarfile.SYMTYPE, "../lib/a"),
        ("usr/bin/c", tarfile.SYMTYPE, "/lib/a"),
        ("usr/bin/d", tarfile.LNKTYPE, "usr/lib/a"),
        ("/absolute", tarfile.REGTYPE, b"inside"),
        ("dangling", tarfile.SYMTYPE, "nowhere"),
        ("dev/null", tarfile.CHRTYPE, b""),
        ("run/pipe", tarfile.FIFOTYPE, b""),
        ("usr/lib/a", tarfile.REGTYPE, b"newer"),
    ]
    root = unpack(tmp_path, entries, mode)
    assert (root / "lib/a").read_bytes() == (root / "usr/bin/b").read_bytes() == b"newer"
    assert (root / "usr/bin/c").read_bytes() == b"newer"
    assert (root / "usr/bin/d").read_bytes() == b"newer"
    assert (root / "absolute").read_bytes() == b"inside"
    assert (root / "usr/lib/a").stat().st_mode & 0o7777 == 0o755
    assert not (root / "dev/null").exists()
    assert not (root / "run/pipe").exists()


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", tarfile.REGTYPE, b"x")],
        [("a/../../evil", tarfile.REGTYPE, b"x")],
        [("a", tarfile.SYMTYPE, ".."), ("a/evil", tarfile.REGTYPE, b"x")],
        [("a", tarfile.SYMTYPE, "../x")],
        [("a", tarfile.SYMTYPE, "/../x")],
        [("a/b", tarfile.SYMTYPE, "../../x")],
        [("d", tarfile.SYMTYPE, "."), ("a", tarfile.SYMTYPE, "d/../x")],
        [("a", tarfile.SYMTYPE, "a/../..")],
        [("a", tarfile.SYMTYPE, "b"), ("b", tarfile.SYMTYPE, "a")],
        [("a", tarfile.LNKTYPE, "../etc/passwd")],
        [("a", tarfile.LNKTYPE, "/etc/passwd")],
        [("a", tarfile.LNKTYPE, "missing")],
        [("a", tarfile.SYMTYPE, "b"), ("a/c", tarfile.SYMTYPE, "x")],
    ],
)
def test_attacks_are_refused_and_leave_nothing(tmp_path: Path, entries: list[Entry]) -> None:
    with pytest.raises(ImageError) as found:
        unpack(tmp_path, entries)
    assert found.value.user_fault
    assert "image" in str(found.value)
    assert {path.name for path in tmp_path.rglob("*")} == {"a.tar", "root"}


def test_damage_and_giving_up(tmp_path: Path) -> None:
    digest = archive(tmp_path / "a.tar", [("a", tarfile.REGTYPE, b"x")])
    with pytest.raises(ImageError, match=r"image 0000.*damaged") as found:
        image.unpack(tmp_path / "a.tar", "0" * 64, tmp_path / "image")
    assert not found.value.user_fault
    stop = threading.Event()
    stop.set()
    with pytest.raises(ImageError, match="no longer wanted"):
        image.unpack(tmp_path / "a.tar", digest, tmp_path / "image", stop)
    (tmp_path / "a.tar").write_bytes(b"no archive at all")
    with pytest.raises(ImageError, match="cannot be unpacked") as found:
        image.unpack(tmp_path / "a.tar", hashlib.sha256(b"no archive at all").hexdigest(), tmp_path / "image")
    assert found.value.user_fault


NAMES = st.sampled_from(["a", "b", "a/b", "a/c", "b/a", "a/b/c", "../a", "/a"])
LINKS = st.sampled_from(["a", "..", "../a", "../..", "/", "/a", "/b/..", "b/../..", "a/b", "../b/a", "."])


@given(
    st.lists(
        st.one_of(
            st.tuples(NAMES, st.just(tarfile.REGTYPE), st.just(b"x")),
            st.tuples(NAMES, st.just(tarfile.DIRTYPE), st.just(b"")),
            st.tuples(NAMES, st.just(tarfile.SYMTYPE), LINKS),
            st.tuples(NAMES, st.just(tarfile.LNKTYPE), NAMES),
        ),
        max_size=6,
    )
)
def test_no_link_ever_leads_out(entries: list[Entry]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        top = Path(name).resolve()
        try:
            root = unpack(top, entries)
        except ImageError:
            assert not (top / "root" / "image").exists()
            return
        inside = root.resolve()
        for path in root.rglob("*"):
            try:
                found = path.resolve()
            except (OSError, RuntimeError):
                continue  # a loop of links
            assert found == inside or inside in found.parents
        assert {path.name for path in top.iterdir()} == {"a.tar", "root"}
