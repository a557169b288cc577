"""Arithmetic word problems for `smoke-math`: the fixed test items and an endless supply of other problems.

The wording is made of many short words in many places (names, things, colours, places, days, numbers), for two reasons:
a model of two million parameters can learn so small a language, and two problems hardly ever share eight words in a row, so
that a contamination detector which looks for such runs does not take honest training data for the test set.

`smoke_math.jsonl` beside this file holds the output of `python -m posttrainbench.smoke`.

Only the standard library is used, because agents import this inside the sandbox.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypedDict

PROMPT = "Solve this problem step by step. End with a line of the form ANSWER: <number>\n\n{question}"

TEST_FILE = Path(__file__).with_name("smoke_math.jsonl")
TEST_SIZE = 200
TEST_SEED = 20_260_308
"""Seed of the fixed items. It is no secret: `generate` drops what is near a test item, whatever its seed."""

NGRAM = 8
"""Words in a row that count as a copy; the same length as the contamination detector's."""

MAX_RESULT = 99
"""No number in a problem or its solution is above this: a tiny model learns so few facts by heart."""

# fmt: off
NAMES = (
    "Adam", "Anna", "Ben", "Clara", "David", "Ella", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jack", "Karl", "Kate",
    "Leo", "Lucy", "Max", "Mia", "Nina", "Noah", "Olga", "Oscar", "Paul", "Rosa", "Ruth", "Sam", "Theo", "Tina", "Tom",
    "Vera", "Will", "Zoe",
)
THINGS = (
    "apples", "balls", "birds", "books", "boots", "cakes", "candles", "cards", "coats", "coins", "cups", "eggs", "hats",
    "kites", "leaves", "lemons", "nuts", "pears", "pens", "plates", "plums", "rings", "seeds", "shells", "socks",
    "spoons", "stamps", "stars", "stones", "tickets", "toys", "flowers",
)
KINDS = ("red", "blue", "green", "white", "black", "yellow", "small", "big", "old", "new", "round", "pretty")
PLACES = (
    "market", "farm", "garden", "school", "park", "lake", "river", "beach", "shop", "house", "barn", "kitchen",
    "forest", "hill", "library", "station", "bridge", "tower", "mill", "hotel", "museum", "camp", "island", "castle",
)
HOLDERS = ("bag", "basket", "jar", "bowl", "crate", "chest", "bucket", "tin")
TIMES = (
    "at dawn", "at sunrise", "in the morning", "before lunch", "at noon", "after lunch", "before tea", "after tea",
    "before dinner", "at sunset", "in the evening", "after dinner", "at night", "at midnight",
)
ENDS = ("in the end", "at last", "after all that", "by now", "at the end", "by then", "after this")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# fmt: on


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Attributes:
        question: About 29 to 57 words of text, without the prompt around it.
        answer: The number asked for, 0 to `MAX_RESULT`.
        solution: A worked solution that ends with the line `ANSWER: <number>`.
        steps: The same calculation as (left, operator, right, result), for those who want other wording.
        subject: Whom the question is about.
        thing: What is counted.
    """

    question: str
    answer: int
    solution: str
    steps: tuple[tuple[int, str, int, int], ...] = field(repr=False)
    subject: str = field(repr=False)
    thing: str = field(repr=False)


class TestItem(TypedDict):
    """One line of the fixed test set."""

    id: str
    question: str
    answer: int


def render_prompt(question: str) -> str:
    """Returns the text of the user message that asks `question`."""
    return PROMPT.format(question=question)


def generate(n: int, seed: int) -> list[Problem]:
    """Makes `n` training problems, the same ones for the same seed.

    No problem shares `NGRAM` words in a row with a test item, hence none equals one; all `n` questions are different.

    Args:
        n: How many.
        seed: Any integer. Different seeds give different problems (two large sets may share a few).
    """
    rng = random.Random(seed)
    forbidden = _test_ngrams()
    made: dict[str, Problem] = {}
    while len(made) < n:
        problem = draw(rng)
        if forbidden.isdisjoint(ngrams(problem.question)):
            made[problem.question] = problem
    return list(made.values())


def test_items() -> list[TestItem]:
    """Returns the fixed test items, in their order."""
    with TEST_FILE.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


test_items.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it where a test imports it


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Returns all runs of `NGRAM` words of `text`, in lower case and without punctuation."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


@cache
def _test_ngrams() -> frozenset[tuple[str, ...]]:
    return frozenset(ngram for item in test_items() for ngram in ngrams(item["question"]))


# --- How a problem is worded ------------------------------------------------------------------------------------------


@dataclass
class _Scene:
    """The people, things and places of one problem, and the sentences told so far."""

    rng: random.Random
    who: str
    friend: str
    other: str
    thing: str
    spare: str
    kind: str
    places: list[str]
    times: list[str]
    end: str
    day: str
    holder: str
    sentences: list[str] = field(default_factory=list)
    steps: list[tuple[int, str, int, int]] = field(default_factory=list)

    def say(self, *choices: str, **numbers: int) -> None:
        """Adds one of `choices`, with its slots filled. Each has a place of its own and a later time."""
        sentence = self.rng.choice(choices).format(
            who=self.who,
            friend=self.friend,
            other=self.other,
            thing=self.thing,
            spare=self.spare,
            kind=self.kind,
            day=self.day,
            holder=self.holder,
            place=self.places.pop(),
            when=self.times.pop(0),
            end=self.end,
            **numbers,
        )
        self.sentences.append(sentence[0].upper() + sentence[1:])

    def add(self, a: int, b: int) -> int:
        self.steps.append((a, "+", b, a + b))
        return a + b

    def subtract(self, a: int, b: int) -> int:
        self.steps.append((a, "-", b, a - b))
        return a - b

    def multiply(self, a: int, b: int) -> int:
        self.steps.append((a, "*", b, a * b))
        return a * b


def draw(rng: random.Random) -> Problem:
    """Draws one problem, without looking at the test items."""
    who, friend, other = rng.sample(NAMES, 3)
    thing, spare = rng.sample(THINGS, 2)
    scene = _Scene(
        rng=rng,
        who=who,
        friend=friend,
        other=other,
        thing=thing,
        spare=spare,
        kind=rng.choice(KINDS),
        places=rng.sample(PLACES, 5),
        times=sorted(rng.sample(TIMES, 5), key=TIMES.index),
        end=rng.choice(ENDS),
        day=rng.choice(DAYS),
        holder=rng.choice(HOLDERS),
    )
    plot = rng.choices(list(_PLOTS), weights=list(_PLOTS.values()))[0]
    plot(scene)
    answer = scene.steps[-1][-1]
    work = "\n".join(f"{a} {op} {b} = {c}" for a, op, b, c in scene.steps)
    return Problem(
        question=" ".join(scene.sentences),
        answer=answer,
        solution=f"{work}\nANSWER: {answer}",
        steps=tuple(scene.steps),
        subject=scene.who,
        thing=scene.thing,
    )


def _begin(s: _Scene, n: int) -> None:
    s.say(
        "On {day} {who} took {n} {kind} {thing} to the {place}.",
        "{who} had {n} {kind} {thing} at the {place} on {day}.",
        "{when} {who} had a {holder} with {n} {kind} {thing} at the {place}.",
        "{who} and {friend} went to the {place} with {n} {kind} {thing}.",
        "{when} there were {n} {kind} {thing} in the {holder} that {who} took to the {place}.",
        n=n,
    )


def _gain(s: _Scene, n: int) -> None:
    s.say(
        "{when} {friend} gave {who} {n} more {thing} near the {place}.",
        "{when} {who} found {n} more {thing} behind the {place} with {friend}.",
        "{when} {friend} put {n} more {kind} {thing} from the {place} in the {holder} of {who}.",
        "{friend} came from the {place} and {when} brought {who} {n} more {thing}.",
        n=n,
    )


def _loss(s: _Scene, n: int) -> None:
    s.say(
        "{when} {who} gave {n} {kind} {thing} to {other} near the {place}.",
        "{when} {who} lost {n} {thing} at the {place} with {other}.",
        "{when} {other} took {n} {kind} {thing} from {who} to the {place}.",
        "{who} met {other} at the {place} and {when} sold {n} {thing}.",
        n=n,
    )


def _ask(s: _Scene) -> None:
    s.say(
        "How many {thing} does {who} have {end}?",
        "How many {kind} {thing} did {who} have after {day}?",
        "{end} how many {thing} were left for {who}?",
        "What is the number of {kind} {thing} that {who} has now?",
    )


def _aside(s: _Scene) -> None:
    """Now and then tells a number that nobody asks for."""
    if s.rng.random() < 0.25:
        s.say(
            "There were {n} {spare} at the {place}.",
            "{when} {other} saw {n} {spare} at the {place}.",
            n=s.rng.randint(2, 60),
        )


def _sum(s: _Scene) -> None:
    a, b = s.rng.randint(4, 60), s.rng.randint(3, 39)
    _begin(s, a)
    _aside(s)
    _gain(s, b)
    s.add(a, b)
    _ask(s)


def _difference(s: _Scene) -> None:
    a = s.rng.randint(10, 99)
    b = s.rng.randint(3, min(49, a - 1))
    _begin(s, a)
    _aside(s)
    _loss(s, b)
    s.subtract(a, b)
    _ask(s)


def _sum_and_difference(s: _Scene) -> None:
    a, b = s.rng.randint(4, 60), s.rng.randint(3, 39)
    c = s.rng.randint(3, min(49, a + b - 1))
    _begin(s, a)
    _gain(s, b)
    _loss(s, c)
    s.subtract(s.add(a, b), c)
    _ask(s)


def _holders(s: _Scene, a: int, b: int) -> None:
    s.say(
        "On {day} {who} had {a} {kind} {holder}s at the {place}.",
        "{who} and {other} took {a} {kind} {holder}s to the {place} on {day}.",
        "{when} {who} stood at the {place} with {other} and {a} {kind} {holder}s.",
        a=a,
    )
    s.kind = s.rng.choice(KINDS)  # from here on, of the things
    s.say(
        "{when} {friend} put {b} {kind} {thing} from the {place} in each {holder} of {who}.",
        "{when} each {holder} got {b} {kind} {thing} that {friend} had brought from the {place}.",
        "Each {holder} held {b} {kind} {thing} {when} for {friend} at the {place}.",
        b=b,
    )


def _product(s: _Scene) -> None:
    a, b = s.rng.randint(2, 9), s.rng.randint(2, 9)
    _holders(s, a, b)
    _aside(s)
    s.multiply(a, b)
    s.say(
        "{end} how many {thing} did {who} have in all the {holder}s?",
        "How many {kind} {thing} were {end} in the {holder}s of {who}?",
    )


def _product_and_difference(s: _Scene) -> None:
    a, b = s.rng.randint(2, 9), s.rng.randint(2, 9)
    c = s.rng.randint(2, min(30, a * b - 1))
    _holders(s, a, b)
    _loss(s, c)
    s.subtract(s.multiply(a, b), c)
    _ask(s)


def _comparison(s: _Scene) -> None:
    a, b = s.rng.randint(4, 60), s.rng.randint(3, 39)
    s.say(
        "On {day} {friend} had {a} {kind} {thing} at the {place}.",
        "{friend} and {other} were at the {place}, where {friend} had {a} {kind} {thing}.",
        "{when} there were {a} {kind} {thing} in the {holder} of {friend} at the {place}.",
        a=a,
    )
    _aside(s)
    more = b >= a or s.rng.random() < 0.5
    than = ("more" if more else "fewer") + " than {friend}"
    s.say(
        "{when} {who} came from the {place} with {b} {kind} {thing} " + than + ".",
        "At the {place} {who} had {b} {thing} " + than + " {when}.",
        b=b,
    )
    _ = s.add(a, b) if more else s.subtract(a, b)
    s.say(
        "How many {thing} did {who} have {end}?",
        "{end} how many {kind} {thing} did {who} have?",
        "What is the number of {thing} that {who} had {end}?",
    )


_PLOTS: dict[Callable[[_Scene], None], int] = {
    _sum: 2,
    _difference: 2,
    _sum_and_difference: 3,
    _product: 2,
    _product_and_difference: 2,
    _comparison: 3,
}
"""The kinds of problem and how often each comes."""


def make_test_items(n: int = TEST_SIZE, seed: int = TEST_SEED) -> list[TestItem]:
    """Draws the fixed items anew; the committed file is the output for the defaults."""
    rng = random.Random(seed)
    questions: dict[str, int] = {}
    while len(questions) < n:
        problem = draw(rng)
        questions[problem.question] = problem.answer
    return [
        {"id": f"smoke-math/{index}", "question": question, "answer": answer}
        for index, (question, answer) in enumerate(questions.items())
    ]
