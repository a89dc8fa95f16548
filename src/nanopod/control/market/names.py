"""Names of instances out of a template: `{{adjective}}`, `{{noun}}`, `{{nanoid(N)}}` among plain characters (R21)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from math import prod
from typing import Final

from nanopod.model.errors import Invalid
from nanopod.model.ids import NAME_PATTERN

DEFAULT: Final = "{{adjective}}-{{noun}}-{{nanoid(6)}}"
LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
NANOID_MAX: Final = 21
FIELD: Final = "instance_name_template"
ADJECTIVES: Final = (
    "able", "agile", "amber", "ample", "avid", "bold", "brave", "bright", "brisk", "calm", "candid", "clear",
    "clever", "cosmic", "crisp", "daring", "deft", "eager", "early", "exact", "fair", "fast", "fine", "firm",
    "fleet", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "happy", "hardy", "honest", "humble",
    "keen", "kind", "lively", "loyal", "lucid", "lucky", "mellow", "merry", "mild", "modest", "neat", "noble",
    "patient", "plain", "polite", "prime", "prompt", "proud", "quick", "quiet", "rapid", "ready", "sharp", "silver",
    "smart", "solid", "steady", "swift",
)  # fmt: skip
NOUNS: Final = (
    "alder", "anchor", "arrow", "aspen", "badger", "basin", "beacon", "birch", "brook", "canyon", "cedar", "cliff",
    "cloud", "comet", "coral", "crane", "creek", "delta", "dune", "eagle", "ember", "falcon", "fern", "field",
    "finch", "fjord", "forest", "fox", "glacier", "grove", "harbor", "hawk", "heron", "hill", "island", "jay",
    "lagoon", "lake", "larch", "lark", "maple", "marsh", "meadow", "mesa", "moon", "oak", "ocean", "orchid",
    "otter", "owl", "peak", "pine", "planet", "pond", "raven", "reef", "ridge", "river", "robin", "spruce",
    "star", "stone", "valley", "wren",
)  # fmt: skip

_PART: Final = re.compile(r"\{\{\s*(adjective|noun|nanoid\((\d{1,4})\))\s*\}\}")


def check_name_template(text: str) -> str:
    """A template that gives good names. Raises `Invalid`, also when it gives fewer combinations than the default."""
    choices = [_choices(found) for found in _PART.finditer(text)]
    plain = _PART.sub("x1", text)
    if "{{" in plain or "}}" in plain:
        raise Invalid(
            f"{FIELD}: {text!r} may hold {{{{adjective}}}}, {{{{noun}}}} and {{{{nanoid(1..{NANOID_MAX})}}}} only",
            field=FIELD,
        )
    if not NAME_PATTERN.fullmatch(plain) or len(next(_made(text, "check"))) > 200:
        raise Invalid(
            f"{FIELD}: {text!r} gives no good names; they are letters, digits, '.', '_' and '-', begin with a letter "
            "or digit, and are at most 200 long",
            field=FIELD,
        )
    needed = prod(_choices(found) for found in _PART.finditer(DEFAULT))
    if prod(choices) < needed:
        raise Invalid(
            f"{FIELD}: {text!r} gives {prod(choices)} different names, fewer than the {needed} of {DEFAULT!r}; "
            "use a longer nanoid, such as {{nanoid(10)}}",
            field=FIELD,
        )
    return text


def names(template: str, seed: str) -> Iterator[str]:
    """Names of a template without an end, drawn from `seed` (any text that is used once)."""
    return _made(template or DEFAULT, seed)


def _choices(found: re.Match[str]) -> int:
    if found[2] is None:
        return len(ADJECTIVES) if found[1] == "adjective" else len(NOUNS)
    length = int(found[2])
    if not 1 <= length <= NANOID_MAX:
        raise Invalid(f"{FIELD}: nanoid({length}) must be from nanoid(1) to nanoid({NANOID_MAX})", field=FIELD)
    return int(len(LETTERS) ** length)


def _made(template: str, seed: str) -> Iterator[str]:
    round_ = 0
    while True:
        digest = hashlib.shake_256(f"{seed}/{round_}".encode()).digest(16 * (1 + template.count("{{")))
        draws = iter([int.from_bytes(digest[at : at + 16]) for at in range(0, len(digest), 16)])
        yield _PART.sub(lambda found: _draw(found, next(draws)), template)  # noqa: B023 - used at once
        round_ += 1


def _draw(found: re.Match[str], number: int) -> str:
    if found[2] is None:
        words = ADJECTIVES if found[1] == "adjective" else NOUNS
        return words[number % len(words)]
    letters = []
    for _ in range(int(found[2])):
        number, letter = divmod(number, len(LETTERS))
        letters.append(LETTERS[letter])
    return "".join(letters)
