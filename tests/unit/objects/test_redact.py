"""Secrets do not show in output, however it is cut into pieces, nor in encoded errors."""

from __future__ import annotations

import itertools
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model import codec
from nanopod.node import journal, redact
from nanopod.node.redact import SHOWN, Redactor

VALUES = ["hunter2-secret", "hunter2", "abcabcabd", "x" * 40]


def test_values_are_taken_out_and_short_ones_left() -> None:
    found = Redactor(["hunter2", "abc"])
    assert found.text("it is hunter2, abc") == f"it is {SHOWN}, abc"
    assert not Redactor(["abc"]) and Redactor(["abc"]).text("abc") == "abc"
    assert Redactor(["hunter2", "hunter2-long"]).text("hunter2-long") == SHOWN, "the longest first"


def test_other_forms_of_a_value_are_found() -> None:
    value = 'line one is long\nline "two" is long\n'
    found = Redactor([value])
    for shown in (value, json.dumps(value), repr(value), 'x line "two" is long y'):
        assert "is long" not in found.text(shown)


@given(
    pieces=st.lists(st.sampled_from([*VALUES, "hun", "ter2", "abc", "abd", "\n", " ", "x" * 13, "é"]), max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=10),
)
def test_a_stream_in_pieces_shows_no_value(pieces: list[str], cuts: list[int]) -> None:
    found = Redactor(VALUES)
    data = "".join(pieces).encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    shown = b"".join(found.feed(1, data[a:b]) for a, b in itertools.pairwise(edges)) + found.finish(1)
    assert not any(value.encode() in shown for value in VALUES)
    plain = Redactor(["never-there"])
    assert plain.feed(1, data) + plain.finish(1) == data


def test_ends_are_kept_back_until_they_are_known() -> None:
    found = Redactor(["hunter2-secret"])
    assert found.feed(1, b"a hunt") == b"a "
    assert found.feed(2, b"hunter3\n") == b"hunter3\n", "streams are apart"
    assert found.feed(1, b"ing\n") == b"hunting\n"
    assert found.feed(1, b"x hunter2-se") == b"x " and found.finish(1) == SHOWN.encode()


def test_encoded_errors_can_still_be_read() -> None:
    error = ValueError("bad key hunter2-secret", {"key": "hunter2-secret"})
    data = Redactor(["hunter2-secret"]).blotted(codec.encode_exception(error))
    read = codec.decode_exception(data)
    assert isinstance(read, ValueError) and read.args == ("bad key " + "*" * 14, {"key": "*" * 14})


def test_a_shim_takes_the_pairs_out_of_its_environment() -> None:
    environ = {"NANOPOD_SECRET_HF": "x", "NANOPOD_SECRET_NAMES": "", "PATH": "/bin"}
    assert redact.taken(environ) == {"HF": "x"}
    assert environ == {"NANOPOD_SECRET_NAMES": "", "PATH": "/bin"}


def test_a_worker_knows_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_here", None)
    monkeypatch.setenv(redact.NAMES, "HF_TOKEN,GONE")
    monkeypatch.setenv("HF_TOKEN", "hunter2-secret")
    assert redact.here().text("hunter2-secret") == SHOWN
    monkeypatch.setattr(redact, "_here", None)


def test_captured_output_has_none_in_log_or_journal(tmp_path: object) -> None:
    directory = os.fspath(str(tmp_path))
    log = os.open(f"{directory}/log", os.O_CREAT | os.O_RDWR)
    capture = journal.Capture(log, journal.Journal(f"{directory}/journal"), Redactor(["hunter2-secret"]))
    reader = capture.fds[0]
    for piece in (b"one hunter2", b"-secret two\nhun", b"t\n"):
        os.write(capture.writers[0], piece)
        capture.read(reader)
    capture.finish()
    expected = f"one {SHOWN} two\nhunt\n".encode()
    with open(f"{directory}/log", "rb") as file:
        assert file.read() == expected
    first = journal.segments(f"{directory}/journal")[0]
    with open(journal.segment_path(f"{directory}/journal", first), "rb") as file:
        data = file.read()
    assert b"".join(data[r[0] : r[0] + r[1]] for r in journal.records(data, first)) == expected
    os.close(log)
