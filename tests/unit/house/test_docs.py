"""Documents hold what they promise: links lead somewhere, files they name exist, commands they show are known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"`?nanopod ([a-z][a-z-]+)")
FILE = re.compile(r"`((?:src|docs|tests|bench|examples|models)/[\w/.-]+\.\w+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in LINK.findall(text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for target in FILE.findall(text):
        assert (ROOT / target).exists(), f"{page.name} names {target}"


def test_commands_in_the_readme_are_known() -> None:
    from nanopod.__main__ import table

    known = set(table())
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    for verb in COMMAND.findall("\n".join(blocks)):
        assert verb in known, f"README.md shows nanopod {verb}"


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)", page.read_text()):
            assert target in targets, f"{page.name} shows make {target}"
