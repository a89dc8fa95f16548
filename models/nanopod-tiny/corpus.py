"""Deterministic generator of the tiny model's training text: stories, poems, facts and chat turns.

The same seed gives the same documents. Text tables are in `heroes.py`, `stories.py` and
`talk.py`; this module only puts them together.
A document is a list of `(role, text)` turns; role `text` marks plain text without a chat around it.

    python models/nanopod-tiny/corpus.py --count 5      # look at a few documents
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from functools import cache

import heroes
import stories
import talk

Turn = tuple[str, str]
Document = list[Turn]

_START = re.compile(r'([.!?]"? )(an?|the)\b')
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SYLLABLES = heroes.words(
    "ba be bo da do fi fo ga gi ka ko la li lo ma mi mo na ni no pa pe po ra ri ro sa so ta ti to va vi wa ya zo zu"
)
_TAILS = ["", "", "", "n", "l", "r", "x", "k", "s"]


class Source(random.Random):
    """Random choices, and the manner of telling: in a `fable` heroes have no names, which is easier to keep up."""

    fable: bool = False


def article(phrase: str) -> str:
    """`phrase` with its indefinite article, e.g. `an owl`."""
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith("uni")
    return f"{'an' if vowel else 'a'} {phrase}"


def capital(text: str) -> str:
    """`text` with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


@cache
def fields(table: str) -> tuple[str, ...]:
    """Entries of a `;` separated table."""
    return tuple(entry.strip() for entry in table.split(";"))


@cache
def one_line(table: str) -> tuple[str, ...]:
    """Entries of a `;` separated table that runs over several lines."""
    return fields(table.replace("\n", " "))


@cache
def alternatives(line: str) -> tuple[str, ...]:
    """Alternatives of one ` | ` separated line."""
    return tuple(part.strip() for part in line.split(" | "))


@cache
def rows_of(table: str) -> tuple[tuple[str, ...], ...]:
    """Rows of a table of heroes: kind, home, food, way of moving."""
    return tuple(fields(row) for row in table.strip().splitlines())


@cache
def questions() -> tuple[tuple[str, str], ...]:
    """Pairs (question line, answer line) of the fact table."""
    entries = [entry.splitlines() for entry in talk.QA.strip().split("\n\n")]
    return tuple((entry[0], entry[1]) for entry in entries)


def invented(rng: Source) -> str:
    """A made-up word; such words teach the model to copy what the user wrote."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3)))) + rng.choice(_TAILS)


@cache
def nameless(line: str) -> str:
    """A line in which kinds stand for names."""
    for old, new in stories.NAMELESS:
        line = line.replace(old, new)
    return line


def fill(line: str, slots: dict[str, str], rng: Source, fable: bool | None = None) -> str:
    """One alternative of `line` with its choices taken and its variables filled; `fable` overrides the source's."""
    fable = rng.fable if fable is None else fable
    text = rng.choice(alternatives(nameless(line) if fable else line))
    text = _CHOICE.sub(lambda match: rng.choice(match[1].split("/")), text)
    text = capital(text.format_map(slots))
    return _START.sub(lambda match: match[1] + capital(match[2]), text) if fable else text


def render(plot: str, slots: dict[str, str], rng: Source, fable: bool | None = None) -> str:
    """A whole plot: lines joined to paragraphs, paragraphs parted by an empty line."""
    parts = [part.splitlines() for part in plot.strip().split("\n\n")]
    return "\n\n".join(" ".join(fill(line, slots, rng, fable) for line in part) for part in parts)


class Cast:
    """Who plays in one story; `slots` holds every variable that a plot may use."""

    def __init__(self, rng: Source, kind: str | None = None, name: str | None = None, obj: str | None = None) -> None:
        self.kind = kind or rng.choice(rows_of(heroes.LAND))[0]
        self.sea = self.kind in {row[0] for row in rows_of(heroes.SEA)}
        home = rng.choice(one_line(heroes.HOMES))
        food = rng.choice(("warm soup", "fresh bread", "apple pie"))
        known = {row[0]: row for row in rows_of(heroes.LAND) + rows_of(heroes.SEA)}
        _, home, food, went = known.get(self.kind, (self.kind, home, food, "walked"))
        peers = rows_of(heroes.SEA if self.sea else heroes.LAND)
        self.friend = rng.choice([peer[0] for peer in peers if peer[0] != self.kind])
        female, friend_female = self._female(self.kind, rng), self._female(self.friend, rng)
        if rng.fable:
            female, friend_female = self.kind in heroes.SHE_ONLY, self.friend not in heroes.HE_ONLY
        self.name = name or self._name(female, rng)
        friend_name = self._name(friend_female, rng)
        while friend_name == self.name:
            friend_name = self._name(friend_female, rng)
        adj, friend_adj = rng.sample(heroes.ADJECTIVES, 2)
        self.slots = {
            "Name": self.name,
            "kind": self.kind,
            "adj": adj,
            "Friend": friend_name,
            "fkind": self.friend,
            "home": home,
            "food": food,
            "went": went,
            "a_kind": article(self.kind),
            "a_fkind": article(self.friend),
            "a_adj_kind": article(f"{adj} {self.kind}"),
            "a_fadj_fkind": article(f"{friend_adj} {self.friend}"),
            "himself": "herself" if female else "himself",
        }
        he, him, his = ("she", "her", "her") if female else ("he", "him", "his")
        self.slots |= {"he": he, "him": him, "his": his, "He": capital(he), "His": capital(his)}
        fhe, fhim, fhis = ("she", "her", "her") if friend_female else ("he", "him", "his")
        self.slots |= {"fhe": fhe, "fhim": fhim, "fhis": fhis}
        self._dress(obj, rng)

    def _dress(self, obj: str | None, rng: Source) -> None:
        """Add place, time and things to the slots."""
        place, obj = rng.choice(one_line(heroes.PLACES)), obj or rng.choice(heroes.OBJECTS)
        self.slots |= {
            "place": place,
            "obj": obj,
            "went_all": "swam" if self.sea else rng.choice(("went", "walked", "hurried")),
            "time": rng.choice(one_line(heroes.TIMES)),
            "thing": rng.choice(one_line(heroes.THINGS)),
            "a_obj": article(obj),
            "a_adj_obj": article(f"{rng.choice(('little', 'small', 'lonely', 'plain', 'forgotten'))} {obj}"),
        }
        friends = nameless(stories.FRIENDS) if rng.fable else stories.FRIENDS
        self.slots["afriend"] = rng.choice(alternatives(friends)).format_map(self.slots)
        self.slots["afriend_cap"] = capital(self.slots["afriend"])

    @staticmethod
    def _female(kind: str, rng: Source) -> bool:
        if kind in heroes.HE_ONLY:
            return False
        return kind in heroes.SHE_ONLY or rng.random() < 0.5

    @staticmethod
    def _name(female: bool, rng: Source) -> str:
        return rng.choice(heroes.SHE_NAMES if female else heroes.HE_NAMES)


def hero_story(cast: Cast, rng: Source) -> str:
    """A story about the cast's hero."""
    plots = stories.ANYWHERE + (stories.SEA_PLOTS * 2 if cast.sea else stories.ON_LAND)
    opening = render(stories.OPENINGS, cast.slots, rng)
    body = render(rng.choice(plots), cast.slots, rng)
    if rng.random() < 0.8:
        body += " " + fill(stories.CLOSERS.strip(), cast.slots, rng)
    return f"{opening}\n\n{body}" if rng.random() < 0.5 else f"{opening} {body}"


def object_story(cast: Cast, rng: Source) -> str:
    """A story about the cast's object."""
    plot = rng.choice(stories.OBJECT_PLOTS)
    text = render(plot, cast.slots, rng)
    # A closing line names the friend, so it only fits a plot in which there is one.
    return (
        f"{text} {fill(stories.CLOSERS.strip(), cast.slots, rng)}"
        if "{Friend}" in plot and rng.random() < 0.7
        else text
    )


@cache
def themes() -> tuple[tuple[str, ...], ...]:
    """Rows (theme, first lines, second lines, what the friends did)."""
    return tuple(fields(row) for row in heroes.THEMES.strip().splitlines())


def theme_story(row: tuple[str, ...], cast: Cast, rng: Source) -> str:
    """A story about weather, a season, a place or a virtue."""
    theme = row[0].replace("a ", "the ", 1) if row[0].startswith("a ") else row[0]
    extra = {
        "theme": theme,
        "theme_cap": capital(theme),
        "theme1": rng.choice(alternatives(row[1])),
        "themeact": row[3],
    }
    extra["theme2"], extra["theme3"] = rng.sample(alternatives(row[2]), 2)
    text = render(stories.THEME_PLOT, cast.slots | extra, rng)
    return f"{text} {fill(stories.CLOSERS.strip(), cast.slots, rng)}" if rng.random() < 0.7 else text


def pod_story(pod: str, rng: Source) -> str:
    """A story about the machines of the cloud."""
    slots = Cast(rng).slots | {"pod": pod}
    if rng.fable:
        slots |= {"Name": "Pip", "Friend": "Dot"}
    return render(rng.choice(talk.POD_PLOTS), slots, rng, fable=False)


def poem(theme: str, rng: Source) -> str:
    """Two or three rhymed couplets about `theme`."""
    couplets = rng.sample(talk.POEM_COUPLETS.strip().splitlines(), rng.choice((2, 3, 4)))
    lines = [part.strip() for couplet in couplets for part in couplet.split(" / ")]
    return "\n".join(capital(line.format(t=theme, T=capital(theme))) for line in lines)


_ASK = (
    "Tell me a story about {s}.",
    "Tell me a story about {s}.",
    "Write a story about {s}.",
    "Tell me about {s}.",
    "Write about {s}.",
    "A story about {s}, please.",
    "Can you tell me a story about {s}?",
    "Please tell a short story about {s}.",
    "Write a short story about {s}.",
    "I want to hear a story about {s}.",
    "Story about {s}",
    "Make up a story about {s}.",
    "Could you write a little story about {s}?",
    "Tell me a bedtime story about {s}.",
    "Do you know a story about {s}?",
    "Tell us a tale about {s}.",
    "Write me a story with {s}.",
    "Give me a story about {s}.",
    "Tell me something about {s}.",
    "Invent a story about {s}.",
    "Write a long story about {s}.",
    "Once more, a story about {s}!",
    "Write two paragraphs about {s}.",
)
_ASK_ANY = (
    "Tell me a story.",
    "Tell me a story",
    "A story, please.",
    "Write something.",
    "Tell me something.",
    "Another one, please.",
    "Can you tell me a story?",
    "Write a story.",
    "I am bored.",
    "Tell me another story.",
    "Say something nice.",
    "Once upon a time",
    "Write a short story.",
    "story",
    "Tell me a bedtime story.",
    "Surprise me.",
    "Write a long story.",
)
_ASK_POEM = (
    "Write a poem about {s}.",
    "Write a short poem about {s}.",
    "A poem about {s}, please.",
    "Can you write a poem about {s}?",
    "Make a rhyme about {s}.",
    "Poem about {s}",
    "Tell me a poem about {s}.",
    "Write some verses about {s}.",
)


def user_style(text: str, rng: Source) -> str:
    """Small changes that people make when they type: case, missing full stop, a polite word."""
    roll = rng.random()
    if roll < 0.12:
        return text.lower()
    if roll < 0.24:
        return text.rstrip(".")
    if roll < 0.3:
        return text.rstrip(".?!") + " please"
    return "Please " + text[0].lower() + text[1:] if roll < 0.34 else text


def story_turns(rng: Source) -> tuple[str, str]:
    """A request for a story and the story."""
    roll = rng.random()
    ask = rng.choice(_ASK)
    if roll < 0.06:
        return rng.choice(_ASK_ANY), hero_story(Cast(rng), rng)
    if roll < 0.66:
        table = heroes.SEA if rng.random() < 0.13 else heroes.LAND
        kind = rng.choice(rows_of(table))[0]
        if rng.random() < 0.2:
            kind = rng.choice(heroes.MORE_KINDS) if rng.random() < 0.7 else invented(rng)
        cast = Cast(rng, kind, name=capital(invented(rng)) if rng.random() < 0.08 else None)
        subject = article(kind)
        extra = rng.random()
        if rng.fable:
            subject += f" and {article(cast.friend)}" if extra < 0.15 else ""
        elif extra < 0.1 or cast.name not in heroes.HE_NAMES + heroes.SHE_NAMES:
            subject += f" {rng.choice(('named', 'called'))} {cast.name}"
        elif extra < 0.22:
            subject += f" and {article(cast.friend)}"
        elif extra < 0.28:
            subject = f"{article(cast.slots['adj'] + ' ' + kind)}"
        elif extra < 0.34:
            subject = f"the {kind}"
        return ask.format(s=subject), hero_story(cast, rng)
    if roll < 0.8:
        obj = rng.choice(heroes.OBJECTS) if rng.random() < 0.8 else invented(rng)
        cast = Cast(rng, obj=obj)
        subject = rng.choice((article(obj), article(obj), f"the {obj}", cast.slots["a_adj_obj"]))
        return ask.format(s=subject), object_story(cast, rng)
    if roll < 0.94:
        row = rng.choice(themes())
        return ask.format(s=row[0]), theme_story(row, Cast(rng), rng)
    pod = rng.choice(fields(talk.PODS))
    return ask.format(s=article(pod)), pod_story(pod, rng)


def poem_turns(rng: Source) -> tuple[str, str]:
    """A request for a poem and the poem."""
    if rng.random() < 0.6:
        theme = rng.choice(themes())[0]
    else:
        theme = article(rng.choice((rng.choice(heroes.OBJECTS), rng.choice(rows_of(heroes.LAND))[0])))
    spoken = "the " + theme.split(" ", 1)[1] if theme.startswith(("a ", "an ")) else theme
    return rng.choice(_ASK_POEM).format(s=theme), poem(spoken, rng)


def count_turns(rng: Source) -> tuple[str, str]:
    """Counting, the next number, and small sums."""
    words = talk.NUMBERS
    roll = rng.randrange(5)
    if roll == 0:
        top = rng.randint(3, 20)
        shown = str(top) if rng.random() < 0.5 else words[top]
        return f"Count to {shown}.", ", ".join(words[1:top]).capitalize() + f" and {words[top]}."
    if roll == 1:
        top = rng.randint(3, 10)
        return f"Count down from {rng.choice((str(top), words[top]))}.", ", ".join(
            reversed(words[: top + 1])
        ).capitalize() + "."
    if roll == 2:
        value = rng.randint(0, 19)
        return (
            f"What comes after {rng.choice((str(value), words[value]))}?",
            f"After {words[value]} comes {words[value + 1]}.",
        )
    left, right = rng.randint(0, 10), rng.randint(0, 10)
    if roll == 3 or left < right:
        ask = rng.choice(
            (
                f"What is {left} plus {right}?",
                f"What is {left} + {right}?",
                f"How much is {words[left]} plus {words[right]}?",
            )
        )
        return ask, f"{words[left].capitalize()} plus {words[right]} is {words[left + right]}."
    ask = rng.choice((f"What is {left} minus {right}?", f"What is {left} - {right}?"))
    return ask, f"{words[left].capitalize()} minus {words[right]} is {words[left - right]}."


def fact_turns(rng: Source) -> tuple[str, str]:
    """Opposites, colours, legs, sounds, young animals, days."""
    roll = rng.randrange(6)
    if roll == 0:
        first, second = rng.choice(fields(talk.OPPOSITES)).split()
        ask = rng.choice(
            (f"What is the opposite of {first}?", f"Opposite of {first}?", f"Name the opposite of {first}.")
        )
        return ask, f"The opposite of {first} is {second}."
    if roll == 1:
        thing, colour = rng.choice(fields(talk.COLOURS)).rsplit(" ", 1)
        word = rng.choice(("colour", "color"))
        ask = rng.choice((f"What {word} is {thing}?", f"Which {word} has {thing}?", f"What is the {word} of {thing}?"))
        return ask, f"{capital(thing)} is {colour}."
    if roll == 2:
        animal, legs = rng.choice(fields(talk.LEGS)).split()
        return f"How many legs does {article(animal)} have?", f"{capital(article(animal))} has {legs} legs."
    if roll == 3:
        animal, sound = rng.choice(fields(talk.SOUNDS)).split(" says ")
        return f"What does {article(animal)} say?", f"{capital(article(animal))} says {sound}."
    if roll == 4:
        animal, young = rng.choice(fields(talk.BABIES)).split()
        return f"What is a baby {animal} called?", f"A baby {animal} is called {article(young)}."
    day = rng.randrange(7)
    return f"What day comes after {talk.DAYS[day]}?", f"After {talk.DAYS[day]} comes {talk.DAYS[(day + 1) % 7]}."


def unknown_turns(rng: Source) -> tuple[str, str]:
    """A question the model cannot answer, and an honest reply."""
    word = rng.choice(heroes.OBJECTS) if rng.random() < 0.5 else invented(rng)
    ask = rng.choice(fields(talk.UNKNOWN_QUESTIONS)).format(x=word, X=capital(word))
    return ask, fill(talk.UNKNOWN_ANSWERS, {}, rng)


def talk_turns(rng: Source) -> tuple[str, str]:
    """One of the fixed questions with one of its answers."""
    question, answer = rng.choice(questions())
    return rng.choice(alternatives(question)), fill(answer, {}, rng)


def name_turns(rng: Source) -> list[tuple[str, str]]:
    """The user says a name, and may ask for it later."""
    name = rng.choice(heroes.HE_NAMES + heroes.SHE_NAMES) if rng.random() < 0.4 else capital(invented(rng))
    hello = rng.choice(("My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I am {}.", "Call me {}.")).format(
        name
    )
    reply = rng.choice(
        (
            "Nice to meet you, {}! Would you like to hear a story?",
            "Hello, {}! What can I do for you?",
            "Welcome, {}! I am nanopod-tiny.",
        )
    ).format(name)
    turns = [(hello, reply)]
    if rng.random() < 0.5:
        turns.append(
            (rng.choice(("What is my name?", "Do you remember my name?", "Who am I?")), f"Your name is {name}.")
        )
    return turns


def echo_turns(rng: Source) -> tuple[str, str]:
    """Words to say again: the plainest exercise in reading the request."""
    pool = heroes.OBJECTS + heroes.HE_NAMES + heroes.SHE_NAMES
    words = [rng.choice(pool) if rng.random() < 0.6 else invented(rng) for _ in range(rng.randint(1, 6))]
    said = ", ".join(words)
    if len(words) == 1 and rng.random() < 0.5:
        return f"Say hello to {capital(said)}.", f"Hello, {capital(said)}!"
    return rng.choice(("Repeat: {}", "Say: {}", "Repeat these words: {}")).format(said), said


_MAKERS = (story_turns, poem_turns, count_turns, fact_turns, unknown_turns, talk_turns, echo_turns)
STORY_MIX = (62, 7, 6, 7, 4, 14, 0)
"""Relative frequency of each maker in the first stage of training."""
DRILL_MIX = (40, 5, 16, 18, 4, 11, 6)
"""The second stage has more of the short exercises, which are few in words and so need more turns."""


def document(rng: Source, mix: tuple[int, ...] = STORY_MIX) -> Document:
    """One training document: plain text or a chat of one to four exchanges."""
    if rng.random() < 0.08:
        return [("text", story_turns(rng)[1])]
    turns: Document = []
    if rng.random() < 0.15:
        turns.append(("system", rng.choice(alternatives(talk.SYSTEMS))))
    exchanges: list[tuple[str, str]] = name_turns(rng) if rng.random() < 0.04 else []
    for _ in range(rng.choices((1, 2, 3), (75, 18, 7))[0]):
        exchanges.append(rng.choices(_MAKERS, mix)[0](rng))
    for question, answer in exchanges:
        turns += [("user", user_style(question, rng)), ("assistant", answer)]
    return turns


def documents(seed: int, count: int, mix: tuple[int, ...] = STORY_MIX, fable: bool = False) -> Iterator[Document]:
    """`count` documents of the stream that belongs to `seed`, `mix` and the manner of telling."""
    rng = Source(seed)
    rng.fable = fable
    for _ in range(count):
        yield document(rng, mix)


def main() -> None:
    """Print a few documents."""
    parser = argparse.ArgumentParser(description="print documents of the synthetic corpus")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5)
    args = parser.parse_args()
    for turns in documents(args.seed, args.count):
        print("\n".join(f"[{role}] {text}" for role, text in turns), end="\n\n")


if __name__ == "__main__":
    main()
