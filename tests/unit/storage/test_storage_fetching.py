"""Fetching from sources: what is taken, how it goes on after an interruption, what is checked, what is shared."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import io
import os
import tarfile
import threading
import tracemalloc
import urllib.request
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from storage_sites import Site, site

from nanopod.model.endpoint import StorageSpec
from nanopod.model.layout import Layout
from nanopod.node.storage import storage as storages
from nanopod.node.storage import streams
from nanopod.node.storage.cache import Cache, Kept
from nanopod.node.storage.errors import GivenUp, StorageFailed
from nanopod.node.storage.fetching import Fetcher, Progress
from nanopod.node.storage.storage import Storage

BIG = os.urandom(3 << 20)


@pytest.fixture
def source() -> Iterator[Site]:
    with site() as made:
        yield made


def fetch(root: Path, spec: StorageSpec, **settings: str) -> dict[str, bytes]:
    """The files of a storage as they lie in a directory; {path: content}."""
    place = storages.place_of(spec)
    cache = Cache(root / "cache")
    fetcher = Fetcher(cache, Progress(place.shown), lambda: False, backoff_s=0.001)
    tree = storages.fetch(fetcher, spec, place, {**spec.options, **settings}, storages.identity(spec, settings))
    there = root / f"there-{os.urandom(3).hex()}"
    cache.link(tree, there)
    return {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()}


def gs(source: Site, uri: str, **fields: object) -> StorageSpec:
    return StorageSpec(uri, options={"STORAGE_EMULATOR_HOST": source.url}, **fields)  # type: ignore[arg-type]


def test_a_prefix_ends_where_a_path_does(tmp_path: Path, source: Site) -> None:
    source.files = {"b/m/x": b"1", "b/m/d/y": b"2", "b/m-2/z": b"3", "b/m": b"4", "b/m/d/": b""}
    assert fetch(tmp_path, gs(source, "gs://b/m/")) == {"m": b"4", "x": b"1", "d/y": b"2"}
    with pytest.raises(StorageFailed, match="holds no files") as caught:
        fetch(tmp_path, gs(source, "gs://b/mm"))
    assert caught.value.user_fault


def test_patterns_choose_files_and_pages_are_followed(tmp_path: Path, source: Site) -> None:
    source.files = {f"b/m/{n}.{kind}": b"x" for n in range(7) for kind in ("json", "bin")}
    source.page = 3
    spec = gs(source, "gs://b/m", allow=("*.json",), ignore=("3.*",))
    assert sorted(fetch(tmp_path, spec)) == [f"{n}.json" for n in (0, 1, 2, 4, 5, 6)]
    with pytest.raises(StorageFailed, match="leave none of its files"):
        fetch(tmp_path, gs(source, "gs://b/m", allow=("*.onnx",)))


def test_goes_on_from_the_last_byte(tmp_path: Path, source: Site) -> None:
    source.files = {"b/m/big": BIG}
    source.cut = [1 << 20, 1 << 20]
    assert fetch(tmp_path, gs(source, "gs://b/m")) == {"big": BIG}
    ranges = [asked for path, asked in source.asked if path.endswith("big")]
    assert ranges[0] == "" and all(one.startswith("bytes=") for one in ranges[1:]) and len(ranges) == 3
    assert source.sent == len(BIG)


def test_a_source_without_ranges_is_read_from_the_start(tmp_path: Path, source: Site) -> None:
    source.files, source.cut, source.ranges = {"b/m/big": BIG}, [2 << 20], False
    assert fetch(tmp_path, gs(source, "gs://b/m")) == {"big": BIG}


def test_three_tries_without_a_byte_are_enough(tmp_path: Path, source: Site) -> None:
    source.files = {"b/m/x": b"x" * 100}
    source.status = [503, 503]
    assert fetch(tmp_path, gs(source, "gs://b/m")) == {"x": b"x" * 100}
    source.files["b/m/x"] = b"y" * 100
    source.status = [503, 503, 503]
    with pytest.raises(StorageFailed, match="503") as caught:
        fetch(tmp_path / "other", gs(source, "gs://b/m"))
    assert not caught.value.user_fault


def test_what_is_damaged_is_fetched_anew_then_given_up(tmp_path: Path, source: Site) -> None:
    source.files, source.wrong_digests = {"b/m/x": b"x" * 100}, True
    with pytest.raises(StorageFailed, match="MD5") as caught:
        fetch(tmp_path, gs(source, "gs://b/m"))
    assert not caught.value.user_fault
    assert sum(path.endswith("/x") for path, _ in source.asked) == 2


@pytest.mark.parametrize(("status", "words"), [(404, "does not exist"), (403, "may not be read"), (401, "may not")])
def test_what_is_not_there_or_not_allowed_is_the_users_fault(
    tmp_path: Path, source: Site, status: int, words: str
) -> None:
    source.status = [status]
    with pytest.raises(StorageFailed, match=words) as caught:
        fetch(tmp_path, gs(source, "gs://b/m"))
    assert caught.value.user_fault and len(source.asked) == 1


def test_a_second_time_nothing_is_copied_and_a_changed_file_is(tmp_path: Path, source: Site) -> None:
    source.files = {"b/m/x": b"x" * 100, "b/m/y": b"y"}
    fetch(tmp_path, gs(source, "gs://b/m"))
    before = source.sent
    fetch(tmp_path, gs(source, "gs://b/m"))
    assert source.sent == before
    source.files["b/m/x"] = b"z" * 100
    assert fetch(tmp_path, gs(source, "gs://b/m"))["x"] == b"z" * 100
    assert source.sent == before + 100


def test_a_source_that_is_away_is_taken_as_it_was_seen_last(tmp_path: Path, source: Site) -> None:
    source.files = {"b/m/x": b"x"}
    spec = gs(source, "gs://b/m")
    fetch(tmp_path, spec)
    source.status = [503] * 3
    assert fetch(tmp_path, spec) == {"x": b"x"}
    source.status = [403]
    with pytest.raises(StorageFailed, match="may not be read"):
        fetch(tmp_path, spec)


# --- web servers ---


def test_a_file_of_a_web_server(tmp_path: Path, source: Site) -> None:
    source.files = {"models/model.joblib": BIG}
    source.cut = [1 << 20]
    assert fetch(tmp_path, StorageSpec(f"{source.url}/models/model.joblib?sig=1")) == {"model.joblib": BIG}
    before = source.sent
    assert fetch(tmp_path, StorageSpec(f"{source.url}/models/model.joblib?sig=1")) == {"model.joblib": BIG}
    assert source.sent - before < len(BIG)  # it was opened to see what it is, and known


def test_headers_of_a_host_and_what_it_may_be(tmp_path: Path, source: Site) -> None:
    source.files, source.kinds = {"m.bin": b"x"}, {"m.bin": "text/html; charset=utf-8"}
    spec = StorageSpec(f"{source.url}/m.bin")
    with pytest.raises(StorageFailed, match="content type text/html") as caught:
        fetch(tmp_path, spec)
    assert caught.value.user_fault
    source.kinds = {}
    source.token = "Bearer t0ken"
    with pytest.raises(StorageFailed, match="401"):
        fetch(tmp_path, spec)
    assert fetch(tmp_path, spec, **{"127.0.0.1-headers": '{"Authorization": "Bearer t0ken"}'}) == {"m.bin": b"x"}
    with pytest.raises(StorageFailed, match="must be a JSON object"):
        fetch(tmp_path, spec, **{"127.0.0.1-headers": "nonsense"})


def _tar(*members: tuple[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_an_archive_is_unpacked_once(tmp_path: Path, source: Site) -> None:
    source.files = {"m.tgz": _tar(("./config.json", b"{}"), ("d/run", b"#!"), ("d/also", "run"))}
    spec = StorageSpec(f"{source.url}/m.tgz")
    assert fetch(tmp_path, spec) == {"config.json": b"{}", "d/run": b"#!", "d/also": b"#!"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a/b.txt", "hello")
    source.files["m.zip"], source.kinds["m.zip"] = zipped.getvalue(), "application/zip"
    assert fetch(tmp_path, StorageSpec(f"{source.url}/m.zip")) == {"a/b.txt": b"hello"}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("../x", b"1")], "leads out"),
        ([("/etc/x", b"1")], "leads out"),
        ([("x", "../../etc/passwd")], "leads out"),
        ([("x", "/etc/passwd")], "leads out"),
        ([("x", "y")], "nothing"),
        ([("x", b"1"), ("x/y", b"2")], "the beginning of"),
        ([("z", b"1"), ("x", "z"), ("x/y", b"2")], "the beginning of"),
        ([("x" * 256, b"1")], "cannot be a file"),
        ([], "holds no files"),
    ],
)
def test_archives_lead_nowhere_else(
    tmp_path: Path, source: Site, members: list[tuple[str, bytes | str]], words: str
) -> None:
    source.files = {"m.tar": _tar(*members)}
    with pytest.raises(StorageFailed, match=words) as caught:
        fetch(tmp_path, StorageSpec(f"{source.url}/m.tar"))
    assert caught.value.user_fault


def test_what_is_no_archive(tmp_path: Path, source: Site) -> None:
    source.files = {"m.zip": b"PK nonsense", "m.tar": b"x" * 2000}
    for name in source.files:
        with pytest.raises(StorageFailed, match="no archive that can be unpacked"):
            fetch(tmp_path, StorageSpec(f"{source.url}/{name}"))


# --- hub and Azure ---


def test_a_hubs_files_with_a_token_that_stays_with_the_hub(tmp_path: Path, source: Site) -> None:
    source.files = {"o/m/config.json": b"{}", "o/m/model.safetensors": BIG, "o/m/sub/vocab.txt": b"v"}
    source.token = "Bearer hf_x"
    spec = StorageSpec("hf://o/m:main", options={"HF_ENDPOINT": source.url})
    assert fetch(tmp_path, spec, HF_TOKEN="hf_x")["model.safetensors"] == BIG
    cdn = [seen for seen, (path, _) in zip(source.headers_seen, source.asked, strict=True) if "/cdn/" in path]
    assert cdn and all("Authorization" not in seen for seen in cdn)
    with pytest.raises(StorageFailed, match="401"):
        fetch(tmp_path, spec)


def test_a_hubs_digest_is_checked(tmp_path: Path, source: Site) -> None:
    source.files, source.wrong_digests = {"o/m/model.safetensors": b"abc"}, True
    with pytest.raises(StorageFailed, match="SHA256"):
        fetch(tmp_path, StorageSpec("hf://o/m", options={"HF_ENDPOINT": source.url}))


def test_azure_blobs(tmp_path: Path, source: Site) -> None:
    source.files = {"c/m/x.bin": BIG, "c/m/d/y": b"2", "c/mm/z": b"3"}
    source.cut = [1 << 20]
    spec = StorageSpec(
        "https://acc.blob.core.windows.net/c/m", options={"AZURE_STORAGE_BLOB_ENDPOINT": source.url}
    )  # fmt: skip
    assert fetch(tmp_path, spec, AZURE_STORAGE_SAS_TOKEN="?sv=1&sig=a%2Bb") == {"x.bin": BIG, "d/y": b"2"}


# --- the cache ---


def test_what_is_in_use_is_never_let_go_of(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=250)
    kept = []
    for number, letter in enumerate("abcd"):
        part = tmp_path / "part"
        part.write_bytes(letter.encode() * 100)
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        cache.keep(part, digest)
        kept.append(Kept(letter, digest, 100))
        blob = cache.root / "blobs" / digest[:2] / digest
        os.utime(blob, (1000 + number, blob.stat().st_mtime))
    cache.link(kept[:1], tmp_path / "used")
    assert cache.evict(fresh_s=0) == 200
    assert [cache.has(one) for one in kept] == [True, False, False, True]
    # Somebody wrote into a kept file: it is not given to anybody any more.
    os.chmod(tmp_path / "used" / "a", 0o644)
    (tmp_path / "used" / "a").write_bytes(b"z" * 100)
    assert not cache.has(kept[0])


# --- several at once ---


def test_two_instances_share_one_download_and_see_how_far_it_is(tmp_path: Path, source: Site) -> None:
    source.files, source.gate = {"b/m/big": BIG}, threading.Event()
    told: list[str] = []

    async def story() -> None:
        node = Storage(Layout(tmp_path))
        spec, stop = gs(source, "gs://b/m"), threading.Event()
        settings = dict(spec.options)

        def tell(text: str) -> None:
            told.append(text)
            if " of 3.1 MB" in text and not text.startswith("fetching gs://b/m: 0.0"):
                source.gate.set()

        both = [node.bring(spec, settings, tmp_path / name, tell, stop) for name in ("one", "two")]
        async with asyncio.timeout(60):
            await asyncio.gather(*both)

    asyncio.run(story())
    assert (tmp_path / "one/big").read_bytes() == (tmp_path / "two/big").read_bytes() == BIG
    assert os.stat(tmp_path / "one/big").st_ino == os.stat(tmp_path / "two/big").st_ino
    assert source.sent == len(BIG)
    assert any(text.startswith("fetching gs://b/m: ") and " of 3.1 MB" in text for text in told)


def test_who_leaves_does_not_end_the_download(tmp_path: Path, source: Site) -> None:
    source.files, source.gate = {"b/m/big": BIG}, threading.Event()

    async def story() -> None:
        node = Storage(Layout(tmp_path))
        spec, stop = gs(source, "gs://b/m"), threading.Event()
        first = asyncio.create_task(node.bring(spec, dict(spec.options), tmp_path / "one", print, stop))
        async with asyncio.timeout(60):
            while source.sent < len(BIG) // 2:
                await asyncio.sleep(0.01)
            stop.set()
            with pytest.raises(GivenUp):
                await first
            source.gate.set()
            await node.bring(spec, dict(spec.options), tmp_path / "two", print, threading.Event())

    asyncio.run(story())
    assert (tmp_path / "two/big").read_bytes() == BIG and source.sent == len(BIG)


def test_what_nobody_waits_for_ends_and_keeps_what_it_has(tmp_path: Path, source: Site) -> None:
    source.files, source.gate = {"b/m/big": BIG}, threading.Event()

    async def story() -> None:
        node = Storage(Layout(tmp_path), linger_s=0.0)
        spec, stop = gs(source, "gs://b/m"), threading.Event()
        first = asyncio.create_task(node.bring(spec, dict(spec.options), tmp_path / "one", print, stop))
        async with asyncio.timeout(60):
            while source.sent < len(BIG) // 2:
                await asyncio.sleep(0.01)
            stop.set()
            with pytest.raises(GivenUp):
                await first
            source.gate.set()
            parts = tmp_path / "cache/storage/parts"
            while not any(one.is_file() and one.stat().st_size >= 1 << 20 for one in parts.iterdir()):
                await asyncio.sleep(0.01)
            await node.bring(spec, dict(spec.options), tmp_path / "two", print, threading.Event())

    asyncio.run(story())
    assert (tmp_path / "two/big").read_bytes() == BIG


def test_a_chain_of_links_ends_and_a_bomb_is_not_unfolded(tmp_path: Path, source: Site) -> None:
    source.files = {"m.tgz": _tar(*((f"l{at}", f"l{at + 1}") for at in range(20_000)))}
    with pytest.raises(StorageFailed, match="leads to nothing"):
        fetch(tmp_path, StorageSpec(f"{source.url}/m.tgz"))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, b"a/" * (20 << 20), zipfile.ZIP_DEFLATED)
    source.files["m.zip"], source.kinds["m.zip"] = zipped.getvalue(), "application/zip"
    tracemalloc.start()
    with pytest.raises(StorageFailed, match="leads to nothing"):
        fetch(tmp_path, StorageSpec(f"{source.url}/m.zip"))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_a_tar_whose_names_fill_the_memory(tmp_path: Path, source: Site) -> None:
    out = io.BytesIO()
    with gzip.open(out, "wb") as packed:
        entry = tarfile.TarInfo("././@LongLink")
        entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
        packed.write(entry.tobuf(tarfile.GNU_FORMAT) + b"a" * (64 << 20))
    source.files = {"m.tgz": out.getvalue()}
    with pytest.raises(StorageFailed, match="too long"):
        fetch(tmp_path, StorageSpec(f"{source.url}/m.tgz"))


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]"])
def test_link_local_addresses_are_no_places_of_models(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    class Reached:
        def getpeername(self) -> tuple[str, int]:
            return host.strip("[]"), 80

        def close(self) -> None:
            pass

    def connect(connection: http.client.HTTPConnection) -> None:
        connection.sock = Reached()  # type: ignore[assignment]

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http.client.HTTPConnection, "connect", connect)
    with pytest.raises(StorageFailed, match="link-local"):
        streams.ask(f"http://{host}/latest/meta-data", {}, "it")


def test_a_redirect_to_another_scheme_is_not_followed(source: Site) -> None:
    redirects, request = streams.Redirects(frozenset()), urllib.request.Request(f"{source.url}/m")
    with pytest.raises(StorageFailed, match="ftp"):
        redirects.redirect_request(request, io.BytesIO(), 302, "Found", Message(), "ftp://elsewhere/m")
