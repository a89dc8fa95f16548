"""Volumes on a node: what is loaded, committed and brought up to date, without a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from nanopod.model import parts
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.model.layout import Layout
from nanopod.model.parts import Manifest
from nanopod.node import volumes
from nanopod.node.volumes import Cache, Mount
from nanopod.server.api.volume_contents import FileChange, merged


class FakeCloud:
    """A server with one volume, which merges commits as the real one does."""

    def __init__(self) -> None:
        self.version = 0
        self.manifest: Manifest = {}
        self.parts: dict[str, bytes] = {}
        self.writer = ""
        self.busy = 0
        self.sent: list[str] = []

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        if path.endswith("/files"):
            return {"version": self.version, "files": self.manifest}
        if path.endswith("/lease"):
            if self.busy:
                self.busy -= 1
                raise Conflict("somebody writes")
            self.writer = body["writer"]
            return {}
        assert (method, body["writer"]) == ("POST", self.writer)
        changes = {name: FileChange(**change) for name, change in body["files"].items()}
        assert all(digest in self.parts for change in changes.values() for digest in change.blob.split())
        self.manifest = merged("m", self.manifest, changes)
        self.version += 1
        return {"version": self.version}

    def send(self, method: str, path: str, data: bytes | None = None) -> bytes:
        place = urlsplit(path)
        if method == "DELETE":
            assert parse_qs(place.query)["writer"] == [self.writer]
            self.writer = ""
            return b""
        digest = place.path.rpartition("/")[2]
        if method == "PUT":
            assert data is not None and parts.digest_of(data) == digest
            self.parts[digest] = data
            self.sent.append(digest)
        elif digest not in self.parts:
            raise NotFound("no such part")
        return self.parts[digest] if method == "GET" else b""


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


@pytest.fixture
def mount(cloud: FakeCloud, tmp_path: Path) -> Any:
    layout = Layout(tmp_path)

    def make(name: str, **options: Any) -> Mount:
        cache = Cache(layout, cloud)  # type: ignore[arg-type]
        made = Mount(tmp_path / name, "m", cache, cloud, read_only=options.get("read_only", False))  # type: ignore[arg-type]
        made.load(discard=True)
        return made

    return make


def content(mount: Mount) -> dict[str, str]:
    return {str(path.relative_to(mount.files)): path.read_text() for path in mount.files.rglob("*") if path.is_file()}


def test_what_one_commits_another_sees_after_reload(mount: Any, cloud: FakeCloud) -> None:
    one, two = mount("one"), mount("two")
    (one.files / "deep" / "er").mkdir(parents=True)
    (one.files / "deep" / "er" / "a").write_text("hello")
    (one.files / "run.sh").write_text("#!/bin/sh")
    (one.files / "run.sh").chmod(0o755)
    (one.files / "empty").touch()
    assert one.commit() == 1
    assert content(two) == {}
    assert two.load(discard=False) == 1
    assert content(two) == {"deep/er/a": "hello", "run.sh": "#!/bin/sh", "empty": ""}
    assert os.access(two.files / "run.sh", os.X_OK)
    (two.files / "deep" / "er" / "a").unlink()
    assert two.commit() == 2 and set(cloud.manifest) == {"run.sh", "empty"}
    assert one.load(discard=False) == 2
    assert content(one) == {"run.sh": "#!/bin/sh", "empty": ""} and not (one.files / "deep").exists()


def test_only_what_changed_is_sent_and_replaced(mount: Any, cloud: FakeCloud) -> None:
    one = mount("one")
    (one.files / "a").write_text("a")
    (one.files / "b").write_text("b")
    one.commit()
    two = mount("two")
    inode = (two.files / "a").stat().st_ino
    cloud.sent.clear()
    (one.files / "b").write_text("new b")
    assert one.commit() == 2 and len(cloud.sent) == 1
    assert one.commit() == 2, "nothing changed, nothing is made"
    two.load(discard=False)
    assert (two.files / "a").stat().st_ino == inode and content(two)["b"] == "new b"


def test_large_files_travel_in_parts(mount: Any, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "PART_BYTES", 4)
    one = mount("one")
    (one.files / "a").write_text("0123456789")
    one.commit()
    assert [cloud.parts[digest] for digest in cloud.manifest["a"][0].split()] == [b"0123", b"4567", b"89"]
    assert content(mount("two")) == {"a": "0123456789"}


def test_both_may_commit_unless_they_changed_the_same_file(mount: Any) -> None:
    one, two = mount("one"), mount("two")
    (one.files / "one").write_text("1")
    (two.files / "two").write_text("2")
    (one.files / "same").write_text("from one")
    assert (one.commit(), two.commit()) == (1, 2)
    (two.files / "same").write_text("from two")
    with pytest.raises(Conflict, match=r"same.*reload\(discard=True\)"):
        two.commit()
    with pytest.raises(Conflict, match="same changed here and by others"):
        two.load(discard=False)
    assert content(two)["same"] == "from two", "nothing was lost"
    two.load(discard=True)
    assert content(two) == {"one": "1", "two": "2", "same": "from one"}
    (two.files / "same").write_text("from two")
    assert two.commit() == 3


def test_what_was_not_committed_stays_unless_it_is_discarded(mount: Any) -> None:
    one, two = mount("one"), mount("two")
    (one.files / "a").write_text("a")
    one.commit()
    (two.files / "mine").write_text("mine")
    two.load(discard=False)
    assert content(two) == {"a": "a", "mine": "mine"}
    (two.files / "a").write_text("changed")
    two.load(discard=True)
    assert content(two) == {"a": "a"}


def test_read_only_mounts_are_links_and_cannot_be_committed(mount: Any) -> None:
    one = mount("one")
    (one.files / "a").write_text("a")
    one.commit()
    first, second = mount("ro1", read_only=True), mount("ro2", read_only=True)
    assert (first.files / "a").stat().st_ino == (second.files / "a").stat().st_ino
    assert (first.files / "a").stat().st_mode & 0o777 == 0o444
    (first.files / "b").write_text("b")
    with pytest.raises(Invalid, match="read-only"):
        first.commit()


def test_writing_into_a_file_reaches_neither_others_nor_the_cache(mount: Any) -> None:
    one = mount("one")
    (one.files / "a").write_text("a")
    one.commit()
    two = mount("two")
    with open(two.files / "a", "a") as file:
        file.write(" and more")
    assert content(mount("three")) == {"a": "a"} and content(one) == {"a": "a"}


def test_a_kept_file_that_was_written_to_is_fetched_anew(mount: Any) -> None:
    one = mount("one")
    (one.files / "a").write_text("a")
    one.commit()
    linked = mount("ro", read_only=True).files / "a"
    linked.chmod(0o644)
    linked.write_text("b")
    assert content(mount("two")) == {"a": "a"}


def test_a_writer_waits_for_another_and_gives_up_at_last(
    mount: Any, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = mount("one")
    (one.files / "a").write_text("a")
    cloud.busy = 2
    assert one.commit() == 1
    monkeypatch.setattr(volumes, "WRITER_S_MAX", 0.0)
    cloud.busy = 99
    (one.files / "a").write_text("b")
    with pytest.raises(Conflict, match="somebody writes"):
        one.commit()


def test_a_damaged_state_is_no_disaster(mount: Any) -> None:
    one = mount("one")
    (one.files / "a").write_text("a")
    one.commit()
    (one.root / "state.json").write_text("{")
    with pytest.raises(Conflict):
        one.load(discard=False)
    one.load(discard=True)
    assert content(one) == {"a": "a"}


def test_a_manifest_refuses_what_no_directory_can_be() -> None:
    with pytest.raises(Invalid, match="a file and a directory"):
        merged("m", {"a": ("", 0, 0o644)}, {"a/b": FileChange()})
    assert merged("m", {"a": ("x", 1, 0o644)}, {"a": FileChange(gone=True, was="x")}) == {}
    same = {"a": ("x", 1, 0o644)}
    assert merged("m", same, {"a": FileChange("x", 1, 0o644, was=None)}) == same, "both wrote the same"
    for path in ("../a", "a/../b", "/a", ""):
        with pytest.raises(ValueError) if ".." in path else pytest.raises(AssertionError):
            assert parts.plain_path(path) not in ("a", "")
