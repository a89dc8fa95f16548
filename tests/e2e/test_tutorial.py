"""The tutorial, the comparison with other systems and the README's snippets do what they say, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from document_pages import Block, Stage, blocks, commands, is_as_expected

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
DOCS = Path(__file__).parents[2] / "docs"
STEPS = sorted((DOCS / "tutorial").glob("[1-9]-*.md"))


@pytest.fixture
def swept(place: Stage) -> Iterator[Stage]:
    """The shared directory, with nothing running in it afterwards."""
    yield place
    place.sweep()


def test_the_tutorial_from_its_first_step_to_its_last(swept: Stage) -> None:
    for page in STEPS:
        assert swept.play(page), f"{page.name} has nothing to run"


@pytest.mark.parametrize("page", [DOCS / "COMING_FROM.md", DOCS.parent / "README.md"], ids=lambda page: page.stem)
def test_a_page_of_its_own(swept: Stage, page: Path) -> None:
    assert swept.play(page)


@pytest.mark.parametrize("page", STEPS, ids=lambda page: page.stem)
def test_everything_in_a_step_is_run(page: Path) -> None:
    """A block that nobody runs would rot; and a file that no command uses is not shown."""
    shown = blocks(page)
    for block in shown:
        assert block.language in ("python", "console"), f"{page.name}, line {block.line}"
        assert block.language == "console" or len(block.words) == 2, f"{page.name}, line {block.line}: name the file"
    asked = " ".join(command.text for block in shown if block.language == "console" for command in commands(block))
    imported = " ".join(block.text for block in shown)
    for block in shown:
        if block.language == "python":
            name = block.words[1]
            assert name in asked or f"from {Path(name).stem} import" in imported, f"{page.name}: {name} is not run"


def test_steps_are_listed_and_lead_on() -> None:
    index = (DOCS / "tutorial" / "README.md").read_text()
    for page, following in zip(STEPS, [*STEPS[1:], None], strict=True):
        assert f"]({page.name})" in index
        if following is not None:
            assert f"]({following.name})" in page.read_text()


def test_what_a_page_shows_is_compared() -> None:
    assert is_as_expected(("a ... c", "...", "end"), "a b c\nx\ny\nend\n")
    assert is_as_expected(("...", "end"), "end\n")
    assert is_as_expected((), "")
    assert not is_as_expected((), "something\n")
    assert not is_as_expected(("a",), "a\nb\n")
    assert not is_as_expected(("a", "..."), "b\n")
    (one, two) = commands(Block(("console",), "$ first\nsaid\n\nmore\n$ second\n", 10))
    assert (one.text, one.expected, one.line) == ("first", ("said", "", "more"), 11)
    assert (two.text, two.expected, two.line) == ("second", (), 15)
