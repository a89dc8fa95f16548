"""Bundles: what is taken, and everything that must not get out of its directory."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.node import bundle
from nanopod.node.bundle import BundleError, inside, unpack

Add = Callable[[tarfile.TarFile], None]


def regular(name: str, text: str = "x", mode: int = 0o644, **fields: int) -> Add:
    def add(archive: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(text), mode
        for field, value in fields.items():
            setattr(entry, field, value)
        archive.addfile(entry, io.BytesIO(text.encode()))

    return add


def special(name: str, kind: bytes, target: str = "") -> Add:
    def add(archive: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        archive.addfile(entry)

    return add


def archive_of(root: Path, *adds: Add) -> tuple[Path, str]:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:gz") as archive:
        for add in adds:
            add(archive)
    path = root / "blob"
    path.write_bytes(plain.getvalue())
    return path, hashlib.sha256(plain.getvalue()).hexdigest()


def everything_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_files_directories_and_inner_links_are_taken(tmp_path: Path) -> None:
    archive, digest = archive_of(
        tmp_path,
        regular("./config.json", '{"format":1,"name":"n","module":"m","pip_installs":[]}'),
        regular("./pkg/sub/deep.py", "print(1)", uid=1234, gid=99),
        regular("run.sh", "#!/bin/sh", mode=0o4755),
        special("./empty", tarfile.DIRTYPE),
        special("alias", tarfile.SYMTYPE, "pkg/sub/deep.py"),
        special("pkg/up", tarfile.SYMTYPE, "../run.sh"),
    )
    config = unpack(archive, digest, tmp_path / "app")
    assert (config.name, config.module) == ("n", "m")
    app = tmp_path / "app"
    assert (app / "alias").read_text() == "print(1)"
    assert (app / "pkg" / "up").read_text() == "#!/bin/sh"
    assert (app / "empty").is_dir()
    assert stat.S_IMODE((app / "run.sh").stat().st_mode) & ~0o755 == 0, "no set-uid bit"
    assert (app / "pkg" / "sub" / "deep.py").stat().st_uid == os.getuid()
    # Again over what is there: the old content is gone.
    (app / "left over").touch()
    unpack(archive, digest, app)
    assert not (app / "left over").exists()


ESCAPES: dict[str, tuple[Add, ...]] = {
    "absolute": (regular("/etc/evil"),),
    "dots": (regular("../evil"),),
    "inner dots": (regular("a/../../evil"),),
    "backslash": (regular("..\\evil"),),
    "absolute link": (special("link", tarfile.SYMTYPE, "/etc/passwd"),),
    "link out": (special("link", tarfile.SYMTYPE, "../outside"),),
    "link out below": (special("a/b/link", tarfile.SYMTYPE, "../../../outside"),),
    "chain of links": (special("d", tarfile.SYMTYPE, "."), special("e", tarfile.SYMTYPE, "d/../outside")),
    "link to the parent": (special("up", tarfile.SYMTYPE, ".."),),
    "write through a link": (special("dir", tarfile.SYMTYPE, "../outside"), regular("dir/evil")),
    "hard link": (special("hard", tarfile.LNKTYPE, "../outside/secret"),),
    "hard link inside": (regular("a"), special("hard", tarfile.LNKTYPE, "a")),
    "device": (special("dev", tarfile.CHRTYPE),),
    "pipe": (special("pipe", tarfile.FIFOTYPE),),
    "twice": (regular("same", "1"), regular("same", "2")),
    "no config object": (regular("config.json", "[]"),),
    "a later format": (regular("config.json", '{"format": 99}'),),
    "long path": (regular("a/" * 600 + "b"),),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_nothing_gets_out_and_nothing_is_left(tmp_path: Path, case: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    home = tmp_path / "home"
    home.mkdir()
    archive, digest = archive_of(tmp_path, regular("fine"), *ESCAPES[case])
    with pytest.raises(BundleError) as caught:
        unpack(archive, digest, home / "app")
    assert caught.value.user_fault
    assert everything_below(home) == set()
    assert everything_below(outside) == {"secret"}
    assert not Path("/etc/evil").exists()


def test_limits_on_count_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, digest = archive_of(tmp_path, *(regular(f"f{n}", "0123456789") for n in range(20)))
    unpack(archive, digest, tmp_path / "app")
    monkeypatch.setattr(bundle, "FILES_MAX", 19)
    with pytest.raises(BundleError, match="more than 19 files"):
        unpack(archive, digest, tmp_path / "app")
    monkeypatch.setattr(bundle, "FILES_MAX", 20)
    monkeypatch.setattr(bundle, "BYTES_MAX", 199)
    with pytest.raises(BundleError, match="unpacks to more than"):
        unpack(archive, digest, tmp_path / "app")
    assert not (tmp_path / "app").exists()
    assert not (tmp_path / "app.part").exists()


def test_a_damaged_or_missing_blob_is_no_fault_of_the_user(tmp_path: Path) -> None:
    archive, digest = archive_of(tmp_path, regular("f"))
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="damaged") as caught:
        unpack(archive, digest, tmp_path / "app")
    assert not caught.value.user_fault
    with pytest.raises(BundleError, match="not here") as caught:
        unpack(tmp_path / "nothing", digest, tmp_path / "app")
    assert not caught.value.user_fault


@given(data=st.binary(max_size=400), cut=st.integers(0, 200))
def test_bytes_that_are_no_archive_are_refused_cleanly(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int
) -> None:
    root = tmp_path_factory.mktemp("noise")
    for content in (data, gzip.compress(data), gzip.compress(data * 5)[:cut]):
        blob = root / "blob"
        blob.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        try:
            unpack(blob, digest, root / "app")
        except BundleError:
            assert not (root / "app").exists()


def test_copies_land_below_the_root(tmp_path: Path) -> None:
    archive, digest = archive_of(tmp_path, regular("data/a.txt", "A"), regular("there", "B"))
    unpack(archive, digest, tmp_path / "app", [("data/a.txt", "/opt/a.txt"), ("data", "copy"), ("there", "/there")])
    app = tmp_path / "app"
    assert (app / "opt" / "a.txt").read_text() == (app / "copy" / "a.txt").read_text() == "A"
    for source, target in (("data", "../evil"), ("../outside", "x"), ("absent", "y")):
        with pytest.raises(BundleError):
            unpack(archive, digest, tmp_path / "app", [(source, target)])
    assert not (tmp_path / "evil").exists()


@given(st.text(alphabet="ab./\\ \0", max_size=12))
def test_a_path_that_is_taken_stays_inside(name: str) -> None:
    try:
        found = inside(name)
    except BundleError:
        return
    assert os.path.normpath(os.path.join("/root", found)).startswith("/root")
    assert not found.startswith("/")
