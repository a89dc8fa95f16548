"""What machines do at their start: scripts, the subset of #cloud-config, and refusals that name the field."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.node import cloudinit
from nanopod.node.cloudinit import Boot, BootError, FileToWrite


def parse(text: str | bytes) -> Boot:
    return cloudinit.parse(base64.b64encode(text.encode() if isinstance(text, str) else text).decode())


def test_nothing_and_scripts() -> None:
    assert parse("") == parse(" \n") == Boot()
    assert parse("#!/bin/sh\nexit 3\n").scripts == (("start-up script", b"#!/bin/sh\nexit 3\n"),)
    assert parse("#cloud-config\n") == Boot()


def test_commands_become_scripts_with_their_words_kept() -> None:
    boot = parse("#cloud-config\nruncmd: [[echo, 'a b', 3], 'echo $HOME']\nbootcmd: [ls]\n")
    assert boot.scripts == (("bootcmd", b"#!/bin/sh\nls\n"), ("runcmd", b"#!/bin/sh\necho 'a b' 3\necho $HOME\n"))
    assert parse("#cloud-config\nnanopod: {on_shutdown: [date]}\n").hook == b"#!/bin/sh\ndate\n"


def test_files_and_keys() -> None:
    boot = parse(
        "#cloud-config\nwrite_files:\n- {path: a/b, content: x, permissions: '0600'}\n"
        "- {path: ~/c, content: eA==, encoding: base64, permissions: 0755, append: true}\nssh_authorized_keys: [k]\n"
    )
    assert boot.files == (
        FileToWrite("a/b", b"x", 0o600, False),
        FileToWrite("c", b"x", 0o755, True),
        FileToWrite(".ssh/authorized_keys", b"k\n", 0o600, True),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo", "first line must be"),
        (b"\x1f\x8bxx", "compressed"),
        (b"#!/bin/sh\n" + b"x" * 70_000, "65536 are allowed"),
        ("#cloud-config\n[", "not valid YAML"),
        ("#cloud-config\n- a", "mapping of keys"),
        ("#cloud-config\npackages: [a]", "user_data.packages: packages cannot be installed"),
        ("#cloud-config\nswap: {}", "user_data.swap: this node does not know it"),
        ("#cloud-config\nruncmd: echo", "user_data.runcmd: it must be a list"),
        ("#cloud-config\nruncmd: [{a: b}]", "user_data.runcmd[0]: it must be text"),
        ("#cloud-config\nwrite_files: [{path: ../x}]", "write_files[0].path: '../x'"),
        ("#cloud-config\nwrite_files: [{path: x/}]", "write_files[0].path: 'x/'"),
        ("#cloud-config\nwrite_files: [{content: x}]", "write_files[0].path: it must be text"),
        ("#cloud-config\nwrite_files: [{path: x, owner: root}]", "write_files[0].owner"),
        ("#cloud-config\nwrite_files: [{path: x, permissions: '9'}]", "write_files[0].permissions"),
        ("#cloud-config\nwrite_files: [{path: x, permissions: '4755'}]", "write_files[0].permissions"),
        ("#cloud-config\nwrite_files: [{path: x, encoding: gzip}]", "write_files[0].encoding"),
        ("#cloud-config\nwrite_files: [{path: x, append: 1}]", "write_files[0].append"),
        ("#cloud-config\nnanopod: {a: b}", "user_data.nanopod.a"),
        ("#cloud-config\nnanopod: [a]", "user_data.nanopod: it must be a mapping"),
    ],
)
def test_refusals_name_the_field(text: str | bytes, words: str) -> None:
    with pytest.raises(BootError) as found:
        parse(text)
    assert words in str(found.value)


def test_no_base64_no_start() -> None:
    with pytest.raises(BootError, match="not base64"):
        cloudinit.parse("#!/bin/sh")


@given(st.binary(max_size=300))
def test_whatever_is_given_is_a_start_or_a_refusal(data: bytes) -> None:
    for head in (b"", b"#cloud-config\n"):
        refusal = ""
        try:
            assert isinstance(parse(head + data), Boot)
        except BootError as error:
            refusal = str(error)
        assert not refusal or refusal.startswith("cloud_init_user_data")


def test_files_stay_in_their_directories(tmp_path: Path) -> None:
    home, image, outside = tmp_path / "home", tmp_path / "image", tmp_path / "outside"
    for directory in (home, image, outside):
        directory.mkdir()
    (image / "etc").symlink_to("../outside")
    cloudinit.write_files([FileToWrite("a/b", b"x", 0o640, False), FileToWrite("/c", b"y", 0o600, False)], home, image)
    cloudinit.write_files([FileToWrite("a/b", b"z", 0o640, True)], home, image)
    assert (home / "a/b").read_bytes() == b"xz"
    assert (home / "a/b").stat().st_mode & 0o777 == 0o640
    assert (image / "c").read_bytes() == b"y"
    with pytest.raises(BootError, match="leads out"):
        cloudinit.write_files([FileToWrite("/etc/x", b"x", 0o600, False)], home, image)
    with pytest.raises(BootError, match="absolute"):
        cloudinit.write_files([FileToWrite("/c", b"x", 0o600, False)], home, None)
    assert list(outside.iterdir()) == []
