"""What an instance finds: directories per storage and per further model, small files, links that an operator allows."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nanopod.model.endpoint import EndpointSpec, InstanceSpec, LoadedModel, ModelSpec, StorageSpec
from nanopod.model.layout import Layout
from nanopod.node.storage import furnishing, told
from nanopod.node.storage.errors import StorageFailed
from nanopod.node.storage.storage import Storage

MISSING = StorageSpec("file:///nowhere/at/all", "/mnt/models")


def instance(*storage: StorageSpec, models: tuple[LoadedModel, ...] = ()) -> InstanceSpec:
    model = ModelSpec("m", "server", storage=storage, models=models)
    app = EndpointSpec("m", kind="model", model=model)
    return InstanceSpec("inst_1", 1, "wksp_1", "endp_1", "rev_1", "node_1", app, 1, "token")


def furnish(root: Path, spec: InstanceSpec, **pairs: dict[str, str]) -> tuple[Path, dict[str, str], list[str]]:
    """(where the files are, variables, notes) of an instance that is given its storages."""
    layout, directory = Layout(root / "data"), root / "data/node/instances/inst_1"
    (directory / "app").mkdir(parents=True, exist_ok=True)
    there = directory / "storage"
    wanted = furnishing.wanted_of(spec)

    def settings(one: StorageSpec) -> dict[str, str]:
        return furnishing.settings_of(one, {}, {}, pairs.get(one.secret, {}))

    asyncio.run(furnishing.bring(Storage(layout), wanted, there, settings, print, threading.Event()))
    env, notes = furnishing.mount(layout, spec, directory, wanted, there, directory / "app")
    return there, env, notes


def test_small_files_and_where_the_first_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    (models / "d").mkdir(parents=True)
    (models / "a.json").write_text("{}")
    (models / "d/b.bin").write_text("b")
    monkeypatch.setenv(furnishing.ALLOWED, str(models))
    spec = instance(
        StorageSpec("config://c", "/conf", options={"x/y.txt": "text:hello", "z": "base64:aGk="}),
        StorageSpec("secret://s", "/keys", secret="s", allow=("tok*",)),
        StorageSpec(models.as_uri(), str(tmp_path / "at/models")),
        models=(LoadedModel("second", "sklearn", StorageSpec(f"{models.as_uri()}/d/b.bin", "/mnt/models")),),
    )
    there, env, notes = furnish(tmp_path, spec, s={"token": "t", "other": "o"})
    assert (there / "conf/x/y.txt").read_text() == "hello" and (there / "conf/z").read_text() == "hi"
    assert [one.name for one in (there / "keys").iterdir()] == ["token"]
    assert (there / "keys/token").stat().st_mode & 0o777 == 0o600
    whole = Path(env[told.DIRECTORY])
    assert whole == there / str(tmp_path / "at/models").strip("/")
    assert (whole / "a.json").read_text() == "{}" and (whole / "second/b.bin").read_text() == "b"
    assert not (models / "second").exists(), "nothing is written into what is linked to"
    assert json.loads(env[told.TABLE])["/conf"] == str(there / "conf")
    assert len(notes) == 0 or all("cannot be made" in one for one in notes)


def test_patterns_choose_among_what_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("a.json", "b.bin"):
        (models / name).write_text(name)
    monkeypatch.setenv(furnishing.ALLOWED, str(models))
    there, _, _ = furnish(tmp_path, instance(StorageSpec(models.as_uri(), "data", allow=("*.json",))))
    assert [one.name for one in (there / "data").iterdir()] == ["a.json"]
    with pytest.raises(StorageFailed, match="leave none of its files"):
        furnish(tmp_path, instance(StorageSpec(models.as_uri(), "data", allow=("*.onnx",))))


@pytest.mark.parametrize("path", ["models/../..", "nothing", "link"])
def test_only_what_the_operator_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/link").symlink_to("/etc")
    monkeypatch.setenv(furnishing.ALLOWED, str(tmp_path / "models"))
    uri = f"file://{tmp_path}/{path}" if path != "link" else f"file://{tmp_path}/models/link"
    with pytest.raises(StorageFailed, match=r"does not allow it|leads out"):
        furnish(tmp_path, instance(StorageSpec(uri, "data")))


def test_what_settings_a_storage_goes_by() -> None:
    one = StorageSpec("s3://b/m", options={"AWS_REGION": "eu", "S3_ENDPOINT": "x"})
    env = {"AWS_REGION": "us", "PATH": "/bin", "h-headers": "{}", "S3_VERIFY_SSL": "0"}
    found = furnishing.settings_of(one, env, {"HF_TOKEN": "t", "OTHER": "o"}, {"awsAccessKeyID": "id"})
    assert found == {
        "AWS_REGION": "eu", "S3_ENDPOINT": "x", "h-headers": "{}", "S3_VERIFY_SSL": "0", "HF_TOKEN": "t",
        "awsAccessKeyID": "id",
    }  # fmt: skip


def test_names_that_cannot_be(tmp_path: Path) -> None:
    for spec in (
        instance(models=(LoadedModel("..", "sklearn", StorageSpec("s3://b/m")),)),
        instance(models=(LoadedModel("", "sklearn", StorageSpec("s3://b/m")),)),
        instance(StorageSpec("s3://b/m", "/a/../b")),
    ):
        with pytest.raises(StorageFailed) as caught:
            furnishing.wanted_of(spec)
        assert caught.value.user_fault


def test_a_model_is_added_beside_what_is_linked_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "a.json").write_text("{}")
    monkeypatch.setenv(furnishing.ALLOWED, str(models))
    main = StorageSpec(models.as_uri(), "data")
    there, env, _ = furnish(tmp_path, instance(main))
    whole = Path(env[told.DIRECTORY])
    assert whole.is_symlink()
    small = StorageSpec("config://c", "/mnt/models/b", options={"b.txt": "text:one"})
    spec = instance(main, models=(LoadedModel("b", "sklearn", small), LoadedModel("gone", "onnx", MISSING)))

    def added(spec: InstanceSpec, name: str) -> Path:
        work = furnishing.add(
            Storage(Layout(tmp_path / "data")), Layout(tmp_path / "data"), spec, there.parent, name,
            lambda one: dict(one.options), threading.Event(),
        )  # fmt: skip
        return asyncio.run(work)

    assert added(spec, "b") == whole / "b" == furnishing.place_in(spec, there.parent, "b")
    assert (whole / "b/b.txt").read_text() == "one" and (whole / "a.json").read_text() == "{}"
    assert [one.name for one in models.iterdir()] == ["a.json"], "nothing is written into what is linked to"
    changed = replace(small, options={"c.txt": "text:two"})
    assert added(instance(main, models=(LoadedModel("b", "sklearn", changed),)), "b") == whole / "b"
    assert [one.name for one in (whole / "b").iterdir()] == ["c.txt"], "it takes the place of the one before"
    with pytest.raises(StorageFailed, match="does not allow it"):
        added(spec, "gone")
    furnishing.discard(whole / "b")
    assert not (whole / "b").exists()


def test_a_further_model_that_cannot_be_had_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(furnishing.ALLOWED, raising=False)
    good = StorageSpec("config://c", "/x", options={"b.txt": "text:one"})
    spec = instance(models=(LoadedModel("gone", "onnx", MISSING), LoadedModel("b", "sklearn", good)))
    lacking: dict[str, str] = {}
    layout, directory = Layout(tmp_path / "data"), tmp_path / "data/i"
    (directory / "app").mkdir(parents=True)
    wanted, root = furnishing.wanted_of(spec), directory / "storage"
    settings = {"b.txt": "text:one"}
    work = furnishing.bring(Storage(layout), wanted, root, lambda _: settings, print, threading.Event(), lacking)
    asyncio.run(work)
    furnishing.mount(layout, spec, directory, wanted, root, directory / "app", lacking)
    assert list(lacking) == ["gone"] and "does not allow it" in lacking["gone"]
    assert (root / "models/b/b.txt").read_text() == "one"
    with pytest.raises(StorageFailed):
        furnishing.mount(layout, spec, directory, wanted, root, directory / "app")
