"""The generator of `smoke-math`: what it promises to agents, to the scorer and to the contamination detector."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from posttrainbench.smoke import generate, render_prompt, test_items
from posttrainbench.smoke.problems import MAX_RESULT, TEST_SIZE, make_test_items


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _copied_items(documents: list[str], share: float, run: int = 8) -> set[int]:
    """Returns the test items of which one document covers `share` of the words by runs of `run` equal words."""
    items = [_words(item["question"]) for item in test_items()]
    places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for number, words in enumerate(items):
        for i in range(len(words) - run + 1):
            places.setdefault(tuple(words[i : i + run]), []).append((number, i))
    copied = set()
    for document in documents:
        words = _words(document)
        covered: dict[int, set[int]] = {}
        for i in range(len(words) - run + 1):
            for number, at in places.get(tuple(words[i : i + run]), ()):
                covered.setdefault(number, set()).update(range(at, at + run))
        copied |= {number for number, at in covered.items() if len(at) >= share * len(items[number])}
    return copied


def test_committed_items_are_what_the_code_makes() -> None:
    assert test_items() == make_test_items()
    assert len(test_items()) == TEST_SIZE
    assert [item["id"] for item in test_items()] == [f"smoke-math/{i}" for i in range(TEST_SIZE)]


def test_questions_are_long_enough_for_the_overlap_detector() -> None:
    lengths = [len(item["question"].split()) for item in test_items()]
    assert min(lengths) >= 20
    assert max(lengths) <= 60


def test_same_seed_same_problems() -> None:
    assert generate(50, 3) == generate(50, 3)
    assert generate(50, 3) != generate(50, 4)
    assert generate(20, 3) == generate(50, 3)[:20]


def test_problems_differ_from_each_other_and_from_the_test_items() -> None:
    questions = [problem.question for problem in generate(5000, 11)]
    assert len(set(questions)) == 5000
    assert not set(questions) & {item["question"] for item in test_items()}


def test_arithmetic_is_right() -> None:
    for problem in generate(2000, 5):
        for a, op, b, c in problem.steps:
            assert c == {"+": a + b, "-": a - b, "*": a * b}[op]
            assert {str(a), str(b)} - {str(step[3]) for step in problem.steps} <= set(_words(problem.question))
        assert problem.answer == problem.steps[-1][3]
        assert 0 < problem.answer <= MAX_RESULT
        assert problem.solution.splitlines()[-1] == f"ANSWER: {problem.answer}"


def test_honest_training_data_is_not_taken_for_the_test_set() -> None:
    """20,000 generated documents copy no test item, at the detector's threshold and far below it."""
    documents = [render_prompt(p.question) + "\n" + p.solution for p in generate(20_000, 7)]
    assert _copied_items(documents, 0.4) == set()
    assert _copied_items(documents, 0.01) == set()


def test_the_measure_above_sees_a_copy() -> None:
    items = test_items()
    assert _copied_items(["Solve: " + item["question"] for item in items[:10]], 0.4) == set(range(10))


def test_prompt_holds_the_question_and_the_format() -> None:
    prompt = render_prompt("How many {braces} are here?")
    assert prompt.endswith("How many {braces} are here?")
    assert "ANSWER: <number>" in prompt


def test_import_is_light() -> None:
    code = "import posttrainbench.smoke, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


@pytest.mark.parametrize("n", [0, 1])
def test_small_requests(n: int) -> None:
    assert len(generate(n, 1)) == n
