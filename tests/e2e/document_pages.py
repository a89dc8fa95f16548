"""Pages of the documentation as programs: files are written, commands are run, what they print is compared.

A fenced block whose first word is `python` and whose second is a file name becomes that file. A `console` block holds
commands after `$ ` and below each what it prints, where `...` stands for any text, alone on a line for any lines. A
variable that a command sets (`NAME=...`) is there for the commands after it. Other blocks are not run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMMAND_S_MAX = 90
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.S | re.M)
SETTING = re.compile(r"^(?:export )?([A-Z_]+)=")
STATUS_URL = "import json, sys; print(json.load(sys.stdin)['url'])"
STAND_INS = {
    "nanopod up --detach": "nanopod up --detach --port 0",
    "export URL=http://127.0.0.1:8900": f'export URL=$(nanopod status --json | python -c "{STATUS_URL}")',
}
"""The usual port may be taken where tests run."""
CURL = """#!{python}
import sys, urllib.error, urllib.request
words, data, headers, urls = [word for word in sys.argv[1:] if word != "-s"], None, {{}}, []
while words:
    word = words.pop(0)
    if word == "-d":
        data = words.pop(0).encode()
    elif word == "-H":
        name, _, value = words.pop(0).partition(":")
        headers[name] = value.strip()
    else:
        urls.append(word)
try:
    answer = urllib.request.urlopen(urllib.request.Request(urls[0], data, headers), timeout=60)
except urllib.error.HTTPError as error:
    answer = error
sys.stdout.write(answer.read().decode())
"""
"""For machines without curl: of it what the pages use."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its info words, its text, the line that it begins at."""

    words: tuple[str, ...]
    text: str
    line: int

    @property
    def language(self) -> str:
        """The first info word."""
        return self.words[0] if self.words else ""


@dataclass(frozen=True)
class Command:
    """A command of a console block and the lines expected below it."""

    text: str
    expected: tuple[str, ...]
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text()
    return [
        Block(tuple(found["info"].split()), found["text"], text.count("\n", 0, found.start()) + 1)
        for found in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[tuple[str, list[str], int]] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            found.append((line[2:], [], number))
        else:
            assert found, f"line {number}: a console block begins with a command"
            found[-1][1].append(line)
    return [Command(text, tuple(lines), number) for text, lines, number in found]


def is_as_expected(expected: tuple[str, ...], said: str) -> bool:
    """Whether printed text is what the page shows; blank lines at its end do not count."""
    parts = []
    for line in expected:
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ ]*\n")
    return re.fullmatch("".join(parts) + r"\s*", said.rstrip() + "\n" if said.strip() else "") is not None


class Stage:
    """A directory where pages are played, with a home of its own so that no other cloud is found."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NANOPOD_", "VAST_", "IS_"))}
        home = directory / "home"
        home.mkdir()
        path = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
        if shutil.which("curl", path=path) is None:
            (home / "curl").write_text(CURL.format(python=sys.executable))
            (home / "curl").chmod(0o755)
            path += f":{home}"
        self.env = {
            **kept, "HOME": str(home), "PATH": path, "COLUMNS": "300",
            "NO_COLOR": "1", "TZ": "UTC", "XDG_CONFIG_HOME": str(home / "config"), "XDG_DATA_HOME": str(home / ".local/share"),
            "TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def play(self, page: Path) -> int:
        """Do what a page says, in its order; how many commands ran."""
        ran = 0
        for block in blocks(page):
            if block.language == "python" and len(block.words) > 1:
                (self.directory / block.words[1]).write_text(block.text)
            elif block.language == "console":
                for command in commands(block):
                    self._do(page, command)
                    ran += 1
        return ran

    def _do(self, page: Path, command: Command) -> None:
        code, said = self.run(STAND_INS.get(command.text, command.text))
        where = f"{page.name}, line {command.line}: $ {command.text}"
        if setting := SETTING.match(command.text):
            self.env[setting[1]] = said.rstrip("\n")
            said = ""
        assert code == 0, f"{where}\nexits with {code}:\n{said}"
        shown = "\n".join(command.expected)
        assert is_as_expected(command.expected, said), f"{where}\nprints:\n{said}\nand the page shows:\n{shown}"

    def run(self, text: str) -> tuple[int, str]:
        """A command's exit code and everything that it printed; the value of the variable that it sets, if it does."""
        if setting := SETTING.match(text):
            text = f'{text}; code=$?; printf %s "${setting[1]}"; exit $code'
        with tempfile.TemporaryFile("w+") as output:
            # A file, not a pipe: a cloud that a command leaves behind would hold the pipe open.
            done = subprocess.run(
                ["bash", "-c", text], cwd=self.directory, env=self.env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, timeout=COMMAND_S_MAX, check=False,
            )  # fmt: skip
            output.seek(0)
            return done.returncode, output.read()

    def start_local(self) -> subprocess.Popen[str]:
        """A cloud where local mode looks for one: programs of this directory share it."""
        child = subprocess.Popen(
            [sys.executable, "-m", "nanopod", "up", "--json", "--port", "0", "--data-dir", str(self.local)],
            env=self.env, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline(), "the cloud for this directory did not start"
        return child

    @property
    def local(self) -> Path:
        """Where local mode keeps its state."""
        return self.directory / ".nanopod"

    def sweep(self) -> None:
        """End the cloud of one's own that pages started, delete what is deployed in the shared local one."""
        if (Path(self.env["XDG_DATA_HOME"]) / "nanopod" / "up.json").exists():
            self.run("nanopod down")
        state = json.loads((self.local / "up.json").read_text())
        key = Path(state["key_file"]).read_text().strip()

        def ask(method: str, path: str) -> bytes:
            asked = urllib.request.Request(
                state["url"] + path, method=method, headers={"Authorization": f"Bearer {key}"}
            )
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return bytes(answer.read())

        for row in json.loads(ask("GET", "/v1/endpoints"))["data"]:
            ask("DELETE", f"/v1/endpoints/{row['id']}")


@contextlib.contextmanager
def stage(*, shared: bool = True) -> Iterator[Stage]:
    """A stage; `shared`: with a cloud that programs in local mode share, which saves starting one for each."""
    directory = Path(tempfile.mkdtemp(prefix="np-doc-"))
    made = Stage(directory)
    child = made.start_local() if shared else None
    try:
        yield made
    finally:
        made.run("nanopod down")
        if child is not None:
            child.terminate()
            child.wait(60)
            assert child.stdout is not None
            child.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)
