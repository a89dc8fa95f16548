"""The parts behind the Vast-shaped routes that need no server: code scan, settings, tickets, keys, offers."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from nanopod.model.capacity import Node, Sku
from nanopod.model.errors import Invalid, Unauthenticated
from nanopod.server.vast.offers import matches, offer_of
from nanopod.server.vast.scan import functions_of
from nanopod.server.vast.spec import Wish, changed, spec_of
from nanopod.server.vast.state import ForeignWorker, Vast
from nanopod.server.vast.tickets import Ticket, Tickets, WorkerSigner, new_key

CODE = b"""
from vastai import Deployment
app = Deployment(name="demo")

@app.remote
async def bare(x): return x

@app.remote(benchmark_dataset=[{"x": 1}], allow_parallel_requests=True, max_queue_time=7)
async def full(x):
    def inner():
        yield 1
    return list(inner())

@app.remote()
def numbers(n):
    yield from range(n)

def helper(): ...
"""


def tar_of(files: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def wish(**changes: object) -> Wish:
    return msgspec.convert(
        {"name": "demo", "image": "base", "file_hash": "a" * 64, "file_size": 10, **changes}, Wish, strict=True
    )


def test_remote_functions_are_found_without_running_the_code() -> None:
    found = {function.name: function for function in functions_of(CODE, "deployment.py")}
    assert set(found) == {"bare", "full", "numbers"}
    assert (found["bare"].kind, found["full"].kind, found["numbers"].kind) == ("async", "async", "generator")
    assert found["full"].concurrency == 10
    assert found["full"].max_queue_time_s == 7
    assert found["full"].benchmark
    assert not found["bare"].benchmark


def test_code_that_does_not_parse_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match=r"deployment\.py is no Python"):
        functions_of(b"def (", "deployment.py")


def test_a_tar_and_settings_become_a_specification(tmp_path: Path) -> None:
    config = (
        b'{"name": "", "pip_installs": ["x"], "apt_gets": [], "envs": [["A", "b"]], "runs": ["echo", ["ls", "-l"]]}'
    )
    tar = tar_of({"config.json": config, "deployment.py": CODE}, tmp_path / "d.tar.gz")
    asked = wish(
        name="__main__",
        env="-p 3000:3000/tcp -p 8080:8080/udp -e REPORT_ADDR=http://x -e ENV_PATH=/venv -e HF_HOME='/a b'",
        search_params="verified=true gpu_ram>=48 gpu_name in RTX_4090,RTX_5090",
        min_load=1,
        max_workers=3,
        ttl=60,
    )
    spec = spec_of(asked, tar, "f" * 64)
    assert spec.name == "main__"
    assert spec.module == "deployment"
    assert spec.image.env == {"A": "b", "HF_HOME": "/a b"}
    assert spec.image.ports == ((3000, "tcp"), (8080, "udp"))
    assert spec.image.python == "/venv"
    assert spec.image.runs == ("echo", ("ls", "-l"))
    assert spec.image.query["gpu_ram"] == {"gte": 48000}
    assert spec.scale.max_workers == 3
    assert spec.ttl_s == 60


def test_a_tar_without_functions_is_refused(tmp_path: Path) -> None:
    tar = tar_of({"deployment.py": b"x = 1"}, tmp_path / "d.tar.gz")
    with pytest.raises(Invalid, match="defines no function"):
        spec_of(wish(), tar, "f" * 64)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"file_hash": "zz"}, "file_hash"),
        ({"file_hash": ""}, "file_hash"),
        ({"file_size": 0}, "file_size"),
        ({"image": ""}, "image"),
        ({"ttl": -1.0}, "ttl"),
        ({"target_util": 3.0}, "target_util"),
        ({"search_params": "gpu_ram >>> 3"}, "search_params"),
    ],
)
def test_impossible_wishes_name_their_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        wish(**change).check()
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({}, "exists"),
        ({"version_label": "v2"}, "exists"),
        ({"min_load": 5.0}, "autoscale_update"),
        ({"ttl": 9.0}, "autoscale_update"),
        ({"file_hash": "b" * 64, "min_load": 5.0}, "soft_update"),
        ({"image": "other", "file_hash": "b" * 64}, "hard_update"),
        ({"search_params": "gpu_ram>=8"}, "hard_update"),
    ],
)
def test_the_highest_tier_wins(change: dict[str, object], action: str) -> None:
    assert changed(wish(), wish(**change)) == action


def ticket(**changes: object) -> Ticket:
    made = Ticket(1, "demo", "3", "http://h/vast/1", 100.0, 7, "p", 1000.0, 1030.0, "n1")
    return msgspec.structs.replace(made, **changes)


def test_a_ticket_is_good_once_and_for_its_own_fields_only() -> None:
    tickets = Tickets(b"secret")
    signature = tickets.sign(ticket())
    for change in (
        {"cost": 0.0},
        {"endpoint": "other"},
        {"url": "http://h/vast/2"},
        {"deployment": 2},
        {"nonce": "n2"},
    ):
        with pytest.raises(Unauthenticated, match="signature"):
            tickets.check(ticket(**change), signature, 1001.0)
    with pytest.raises(Unauthenticated, match="expired"):
        tickets.check(ticket(), signature, 1030.0)
    tickets.check(ticket(), signature, 1001.0)
    with pytest.raises(Unauthenticated, match="used already"):
        tickets.check(ticket(), signature, 1002.0)
    with pytest.raises(Unauthenticated):
        Tickets(b"another").check(ticket(nonce="n3"), signature, 1001.0)


def test_spent_tickets_are_forgotten_once_they_would_have_expired() -> None:
    tickets = Tickets(b"secret")
    for index in range(5):
        one = ticket(nonce=f"n{index}")
        tickets.check(one, tickets.sign(one), 1001.0)
    late = ticket(nonce="late", issued_at=2000.0, expires_at=2030.0)
    tickets.check(late, tickets.sign(late), 2001.0)
    assert len(tickets._order) == 1


def test_workers_verify_the_urls_signature() -> None:
    signer = WorkerSigner(new_key())
    key = load_pem_public_key(signer.public_pem)
    assert isinstance(key, rsa.RSAPublicKey)
    import base64

    key.verify(
        base64.b64decode(signer.sign("http://w:1")),
        b'{\n    "url": "http://w:1"\n}',
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


def test_keys_say_their_deployment_and_nothing_else_does(tmp_path: Path) -> None:
    vast = Vast(b"secret", tmp_path / "k")
    assert vast.deployment_of(vast.endpoint_key(7), "endpoint") == 7
    assert vast.deployment_of(vast.worker_key(7), "endpoint") is None
    assert vast.deployment_of(vast.endpoint_key(7).replace("7.", "8."), "endpoint") is None
    assert vast.deployment_of("", "worker") is None
    assert vast.deployment_of("9" * 40 + ".x", "worker") is None
    first = vast.signer.public_pem
    assert Vast(b"secret", tmp_path / "k").signer.public_pem == first
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600


def test_the_least_busy_fresh_worker_comes_first(tmp_path: Path) -> None:
    vast = Vast(b"secret", tmp_path / "k")
    for number, load in ((1, 300.0), (2, 100.0), (3, 0.0)):
        worker = ForeignWorker(number, 5, f"http://w{number}", 100.0, 0.0, claimed_perf=10.0)
        worker.routed = {1: (load, 100.0)}
        vast.workers[number] = worker
    vast.workers[3].error = "broken"
    assert [worker.worker_id for worker in vast.workers_of(5, 101.0)] == [2, 1]
    assert vast.workers_of(5, 200.0) == []
    assert vast.workers_of(6, 101.0) == []


def test_a_workers_own_figure_counts_until_twenty_calls_are_measured(tmp_path: Path) -> None:
    worker = ForeignWorker(1, 5, "http://w", 0.0, 0.0, claimed_perf=1e6)
    worker.measured.extend([50.0] * 19)
    assert worker.perf == 1e6
    worker.measured.append(50.0)
    assert worker.perf == 50.0


def test_offers_are_filtered_by_the_query_language() -> None:
    sku = Sku("isku_1", "h100", accelerator="H100 SXM", num_accelerators=8, accelerator_memory=80_000_000_000)
    offer = offer_of(Node("node_1", "machine_1", "isku_1", 1), sku, "bid")
    assert offer["gpu_ram"] == 80_000
    assert matches(offer, {"gpu_ram": {"gte": 48000}, "gpu_name": {"in": ["H100 SXM"]}, "unknown": {"eq": 1}})
    assert not matches(offer, {"num_gpus": {"lt": 8}})
    assert not matches(offer, {"gpu_name": {"notin": ["H100 SXM"]}})
    with pytest.raises(Invalid, match="no operator"):
        matches(offer, {"num_gpus": {"like": 8}})
