"""The command line against an API of recorded answers."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator

import pytest
from recorded_api import Recorded

from nanopod import __main__ as command


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    recorded = Recorded()
    monkeypatch.setenv("NANOPOD_URL", recorded.url)
    monkeypatch.setenv("NANOPOD_TOKEN", "sk_test")
    monkeypatch.delenv("NANOPOD_API_KEY", raising=False)
    yield recorded
    recorded.server.shutdown()
    recorded.server.server_close()


@pytest.fixture
def run(api: Recorded, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str, str]]:
    def do(line: str) -> tuple[int, str, str]:
        try:
            code = command.main(shlex.split(line))
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return do
