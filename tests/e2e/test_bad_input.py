"""What goes wrong at the caller's side is said once, clearly, with the fix, and leaves the cloud healthy."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e

HEAD = """
import asyncio
from nanopod import Deployment
app = Deployment(name={name!r})
app.image("python")
app.configure_autoscaling(cold_workers=0, min_load=0, max_workers=1)
"""
TAIL = """
async def main():
    await app.async_ensure_ready()
    print(await work(1))

if __name__ == "__main__":
    asyncio.run(main())
"""

CASES = {
    "syntax": ("def work(x) return x", ["SyntaxError"]),
    "import": (
        "if not __name__ == '__main__':\n    import a_module_that_is_nowhere\n@app.remote\nasync def work(x): return x",
        ["a_module_that_is_nowhere", "import"],
    ),
    "context": (
        "@app.context()\nclass Model:\n    async def __aenter__(self): raise ValueError('weights are gone')\n"
        "    async def __aexit__(self, *a): pass\n@app.remote\nasync def work(x): return x",
        ["weights are gone", "context"],
    ),
    "unserializable": (
        "@app.remote\nasync def work(x):\n    import threading\n    return {'lock': [threading.Lock()]}",
        ["SerializationError", "lock"],
    ),
    "raises": (
        "class Sour(Exception): pass\n@app.remote\nasync def work(x): raise ValueError('lemons', 3)",
        ["ValueError", "lemons", "in work"],
    ),
    "requirement": (
        "app.image('python').pip_install('a-package-that-does-not-exist-anywhere-9')\n@app.remote\nasync def work(x): return x",
        ["a-package-that-does-not-exist-anywhere-9", "environment"],
    ),
}


def run(cloud: Cloud, path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a user's file against the cloud."""
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=100, env={**cloud.client_env(), **env}
    )


@pytest.mark.parametrize("case", CASES)
def test_a_broken_deployment_says_what_is_wrong(cloud: Cloud, tmp_path: Path, case: str) -> None:
    body, wanted = CASES[case]
    path = tmp_path / f"bad_{case}.py"
    path.write_text(textwrap.dedent(HEAD.format(name=f"bad-{case}")) + body + "\n" + textwrap.dedent(TAIL))
    done = run(cloud, path)
    assert done.returncode != 0
    for words in wanted:
        assert words in done.stderr, done.stderr
    healthy(cloud, tmp_path)


def healthy(cloud: Cloud, tmp_path: Path) -> None:
    """A good deployment still works."""
    path = tmp_path / "good.py"
    good = "@app.remote\nasync def work(x): return x + 41"
    path.write_text(textwrap.dedent(HEAD.format(name="good")) + good + "\n" + textwrap.dedent(TAIL))
    done = run(cloud, path)
    assert done.stdout.strip() == "42", done.stderr


def test_a_wrong_key_is_one_clear_message(cloud: Cloud, tmp_path: Path) -> None:
    path = tmp_path / "good.py"
    good = "@app.remote\nasync def work(x): return x"
    path.write_text(textwrap.dedent(HEAD.format(name="good")) + good + "\n" + textwrap.dedent(TAIL))
    done = run(cloud, path, NANOPOD_API_KEY="sk_np_wrongkey_0")
    assert done.returncode != 0
    assert "Unauthenticated" in done.stderr
    assert "NANOPOD_API_KEY" in done.stderr
    assert "sk_np_wrongkey_0" not in done.stderr


def test_a_large_argument_travels_and_one_beyond_the_limit_is_refused_at_the_caller(
    cloud: Cloud, tmp_path: Path
) -> None:
    path = tmp_path / "big.py"
    body = "@app.remote\nasync def work(x): return len(x)"
    for mib, passes in ((33, True), (257, False)):
        tail = TAIL.replace("work(1)", f"work(b'x' * ({mib} << 20))")
        path.write_text(textwrap.dedent(HEAD.format(name="good-big")) + body + "\n" + textwrap.dedent(tail))
        done = run(cloud, path)
        if passes:
            assert (done.returncode, done.stdout.strip()) == (0, str(mib << 20)), done.stderr
        else:
            assert done.returncode != 0
            assert "Invalid" in done.stderr
            assert "256 MiB" in done.stderr


def test_unknown_fields_are_named(cloud: Cloud) -> None:
    import json
    import urllib.error

    with pytest.raises(urllib.error.HTTPError) as caught:
        cloud.api("POST", "/v1/endpoints", {"name": "x", "kind": "model", "scale": {"max_worker": 1}})
    assert caught.value.code in (400, 422)
    assert "max_worker" in json.loads(caught.value.read())["error"]["message"]
