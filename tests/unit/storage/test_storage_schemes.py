"""URIs and patterns: what each form means, what is refused and with which words; paths that lead to files."""

from __future__ import annotations

import pytest

from nanopod.model.endpoint import ModelSpec
from nanopod.node.storage import schemes, told
from nanopod.node.storage.schemes import BadUri, Place, below, parse, patterns, wanted


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket/a/b/", ("s3", "bucket", "a/b", "")),
        ("s3://bucket", ("s3", "bucket", "", "")),
        ("gs://b/key?with#marks", ("gs", "b", "key?with#marks", "")),
        ("hf://owner/model", ("hf", "owner/model", "", "")),
        ("hf://owner/model:v1.2", ("hf", "owner/model", "", "v1.2")),
        ("https://host:8443/a/b%20c.joblib", ("web", "host:8443", "a/b%20c.joblib", "")),
        ("https://host/team/repo.git", ("git", "host", "team/repo.git", "")),
        ("https://host/repo.git#release/1", ("git", "host", "repo.git", "release/1")),
        ("https://acc.blob.core.windows.net/c/p", ("azure", "acc.blob.core.windows.net", "c/p", "")),
        ("pvc://claim/sub/dir", ("pvc", "claim", "sub/dir", "")),
        ("pvc://claim", ("pvc", "claim", "", "")),
        ("file:///srv/models", ("file", "", "srv/models", "")),
    ],
)
def test_what_a_uri_names(uri: str, place: tuple[str, str, str, str]) -> None:
    found = parse(uri)
    assert (found.scheme, found.host, found.path, found.ref) == place


def test_what_signs_a_url_is_not_shown() -> None:
    found = parse("https://host/m.bin?sig=secret")
    assert found.query == "sig=secret" and found.shown == "https://host/m.bin"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "give a URI"),
        ("models/x", "has no scheme"),
        ("oci://registry/model", "scheme not available here: oci"),
        ("oci+native://registry/model", "scheme not available here"),
        ("modelscope://a/b", "scheme not available here"),
        ("webhdfs://a/b", "scheme not available here"),
        ("ftp://host/x", "'ftp' is not known"),
        ("hf://owner", "exactly owner and model"),
        ("hf://owner/model/more", "exactly owner and model"),
        ("hf://owner/model:", "revision"),
        ("https://host/", "file name is required"),
        ("https://host/dir/", "file name is required"),
        ("https:///x", "names no host"),
        ("http://host/repo.git", "over https only"),
        ("https://user:pass@host/x", "no credentials"),
        ("https://acc.blob.core.windows.net/", "name a container"),
        ("https://acc.file.core.windows.net/s/x", "scheme not available here: Azure file"),
        ("https://host/a/../b", "leads out"),
        ("s3://b@d/x", "no credentials"),
        ("s3:///x", "cannot be a bucket"),
        ("pvc:///x", "name a volume"),
        ("pvc://claim/../other", "leads out"),
        ("file://host/x", "absolute path"),
        ("s3://b/with blank", "without blanks"),
    ],
)
def test_what_is_refused(uri: str, words: str) -> None:
    with pytest.raises(BadUri, match=words) as caught:
        parse(uri, "spec.storageUri")
    assert str(caught.value).startswith("spec.storageUri: ") and "pass" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "prefix", "path"),
    [("m/x", "m", "x"), ("m-2/x", "m", None), ("m", "m", "m"), ("a/m", "a/m", "m"), ("m/", "m", None), ("k", "", "k")],
)
def test_prefixes_end_where_a_path_does(key: str, prefix: str, path: str | None) -> None:
    assert below(key, prefix) == path


def test_patterns() -> None:
    assert patterns('["*.json", "a,b"]') == ("*.json", "a,b")
    assert patterns(" *.json, *.bin ,") == ("*.json", "*.bin") and patterns("") == ()
    for text in ('["x"', "[1]"):
        with pytest.raises(BadUri, match="STORAGE_ALLOW_PATTERNS"):
            patterns(text)
    assert wanted("d/x.json", ("*.json",), ()) and not wanted("d/x.JSON", ("*.json",), ())
    assert wanted("x", (), ("y*",)) and not wanted("y1", (), ("y*",))


def test_targets() -> None:
    assert schemes.target("/mnt//models/") == "/mnt/models" and schemes.target("data") == "data"
    for path in ("/", "", "/mnt/../etc"):
        with pytest.raises(BadUri):
            schemes.target(path)
    assert Place("s3", "", "b").secure


def test_paths_of_a_command_lead_to_the_files() -> None:
    table = {"/mnt/models": "/i/1/storage/mnt/models", "/mnt/pvc": "/v", "relative": "/x"}
    for text, found in {
        "/mnt/models": "/i/1/storage/mnt/models",
        "--model=/mnt/models/a.onnx": "--model=/i/1/storage/mnt/models/a.onnx",
        "file:///mnt/models/x": "file:///i/1/storage/mnt/models/x",
        "/mnt/models:/mnt/pvc": "/i/1/storage/mnt/models:/v",
        "/mnt/models-2": "/mnt/models-2",
        "/other/mnt/models": "/other/mnt/models",
        "relative": "relative",
    }.items():
        assert told.located(text, table) == found
    model = ModelSpec("m", "command", argv=("serve", "/mnt/models"), options={"dir": "/mnt/models"})
    env = {told.TABLE: '{"/mnt/models": "/here"}'}
    moved = told.located_model(model, env)
    assert moved.argv == ("serve", "/here") and moved.options == {"dir": "/here"}
    assert told.located_model(model, {}) is model
