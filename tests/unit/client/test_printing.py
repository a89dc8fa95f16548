"""Lines of remote functions in the caller's terminal."""

from __future__ import annotations

import pytest

from nanopod.client import printing
from nanopod.model.calls import Log

ID = bytes(15) + b"\xab"


def test_streams_are_kept_apart_and_calls_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    printing.show(Log(ID, "stdout", "one"), "square", several=False)
    printing.show(Log(ID, "stderr", "two"), "square", several=True)
    printing.show(Log(ID, "stdout", "three"), "", several=True)
    out, err = capsys.readouterr()
    assert (out, err) == ("one\n[call 00ab] three\n", "[square 00ab] two\n")


def test_standard_output_may_belong_to_something_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printing, "to_stderr", True)
    printing.show(Log(ID, "stdout", "one"), "square", several=False)
    assert tuple(capsys.readouterr()) == ("", "one\n")


@pytest.mark.parametrize(
    ("logs", "mode", "shown"),
    [
        ("", "", True),
        ("", "deploy", True),
        ("", "serve", False),
        ("0", "", False),
        ("off", "", False),
        ("1", "serve", True),
    ],
)
def test_when_lines_are_shown(monkeypatch: pytest.MonkeyPatch, logs: str, mode: str, shown: bool) -> None:
    monkeypatch.setenv("NANOPOD_LOGS", logs)
    monkeypatch.setenv("NANOPOD_MODE", mode)
    assert printing.is_on() is shown
