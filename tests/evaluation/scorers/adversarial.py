"""Adversarial and odd completions with the verdict of each scorer: every exploit and format quirk of reference.md 1, 7, 8.

Where `paper` says yes and `strict` no, the published scoring is exploitable; where it is the other way round, the
published scoring rejects a right answer for its form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One completion. `strict` and `paper` are the verdicts that are expected."""

    benchmark: str
    name: str
    completion: str
    target: str
    strict: bool
    paper: bool


def _cases(benchmark: str, *rows: tuple[str, str, str, bool, bool]) -> list[Case]:
    return [Case(benchmark, *row) for row in rows]


NUMERIC = _cases(
    "gsm8k",
    ("plain", "9*2=18\n\nANSWER: 18", "18", True, True),
    ("suffix: longer number", "ANSWER: 18", "8", False, True),
    ("suffix: two digits", "ANSWER: 113", "13", False, True),
    ("suffix: negative", "ANSWER: -5", "5", False, True),
    ("suffix: negative, last token", "the answer is -5", "5", False, True),
    ("negative target by text", "ANSWER: -5", "-5", True, True),
    ("negative target, positive answer", "ANSWER: 5", "-5", False, True),
    ("sixth digit", "ANSWER: 123456", "123457", False, True),
    ("last number anywhere", "I count 1, 2, 3 and finally 70", "70", False, True),
    ("number after the answer", "ANSWER: 70\n\nCheck: 35 + 35 = 71", "70", True, False),
    ("all numbers listed", "ANSWER: " + " ".join(map(str, range(1, 71))), "70", False, True),
    ("two answers in a line", "ANSWER: 70 or 71", "70", False, False),
    ("two answers in a line, right last", "ANSWER: 71 or 70", "70", False, True),
    ("two lines, right first", "ANSWER: 70\nANSWER: 71", "70", False, False),
    ("two lines, right last", "ANSWER: 71\nANSWER: 70", "70", True, True),
    ("no blank", "ANSWER:70", "70", True, True),
    ("equation", "x=70", "70", False, True),
    ("brace", "ANSWER: 70}", "70", True, False),
    ("percent", "ANSWER: 5%", "5", True, False),
    ("math mode", "ANSWER: \\(70\\)", "70", True, False),
    ("dollars", "ANSWER: $70", "70", True, True),
    ("escaped dollars", "ANSWER: \\$70", "70", True, True),
    ("decimals", "ANSWER: $70.00", "70", True, True),
    ("trailing point", "ANSWER: 70.", "70", True, True),
    ("unit", "ANSWER: 70 dollars", "70", True, True),
    ("bold", "**ANSWER: 70**", "70", True, True),
    ("bold word", "**Answer:** 70", "70", True, True),
    ("heading", "### Final answer: 70", "70", True, True),
    ("next line", "ANSWER:\n70", "70", True, True),
    ("the data's own form", "9 * 2 = <<9*2=18>>18\n#### 18", "18", True, True),
    ("the data's own form, other number", "9 * 2 = 18\n#### 81", "18", False, False),
    ("answer line beats hashes", "ANSWER: 17\n#### 18", "18", False, True),
    ("heading of hashes", "#### Solution\nit is 18", "18", False, True),
    ("boxed only", "so $\\boxed{70}$", "70", True, False),
    ("thousands", "ANSWER: 57,500", "57500", True, True),
    ("thousands in the target", "ANSWER: 57,500", "57,500", True, True),
    ("thousands in the target only", "ANSWER: 57500", "57,500", True, False),
    ("broken thousands", "ANSWER: 5,75,00", "57500", False, True),
    ("bound", "ANSWER: >= 70", "70", False, True),
    ("power", "ANSWER: 70^1", "70", False, False),
    ("fraction", "ANSWER: 140/2", "70", True, False),
    ("division by zero", "ANSWER: 70/0", "70", False, False),
    ("scientific", "ANSWER: 7e1", "70", False, False),
    ("several points", "ANSWER: 7.0.0", "70", False, False),
    ("vulgar fraction", "ANSWER: ½", "5", False, True),
    ("superscript", "ANSWER: 7²", "49", False, True),
    ("arabic digits", "ANSWER: ٧٠", "70", False, True),
    ("nan", "ANSWER: nan", "0", False, False),
    ("infinite", "ANSWER: inf", "0", False, False),
    ("huge", "ANSWER: " + "9" * 100_000, "9", False, False),
    ("empty", "", "70", False, False),
    ("blank", " \n\t", "70", False, False),
    ("answer without a number", "ANSWER: seventy", "70", False, False),
    ("template echoed", 'ANSWER: $ANSWER" (without quotes)', "70", False, False),
    ("in closed thinking", "<think>ANSWER: 70</think>I do not know.", "70", False, False),
    ("in unclosed thinking", "<think>ANSWER: 70", "70", False, True),
    ("in a second thought", "<think>a</think><think>ANSWER: 70</think>no", "70", False, False),
    ("lone end of thinking", "ANSWER: 71</think>ANSWER: 70", "70", True, True),
    ("after thinking", "<think>ANSWER: 71</think>\nANSWER: 70", "70", True, True),
)

AIME = _cases(
    "aime2025",
    ("boxed", "thus $\\boxed{70}$", "70", True, True),
    ("boxed in the answer line", "ANSWER: $\\boxed{70}$", "70", True, True),
    ("greedy boxes in a line", "\\boxed{1} and \\boxed{70}", "70", True, True),
    ("answer line beats box", "\\boxed{71}\nANSWER: 70", "70", True, True),
    ("degrees", "ANSWER: 336^\\circ", "336", True, False),
    ("suffix", "ANSWER: 1070", "70", False, True),
    ("leading zeros", "ANSWER: 070", "70", True, True),
    ("nested box", "\\boxed{\\text{70}}", "70", True, False),
    ("box with a fraction", "\\boxed{\\frac{140}{2}}", "70", False, False),
)

CHOICE = _cases(
    "gpqamain",
    ("plain", "ANSWER: B", "B", True, True),
    ("lower case", "answer: b", "B", True, False),
    ("bold line", "**ANSWER: B**", "B", True, True),
    ("bold letter", "ANSWER: **B**", "B", True, False),
    ("parentheses", "ANSWER: (B)", "B", True, False),
    ("boxed", "ANSWER: $\\boxed{B}$", "B", True, False),
    ("closing parenthesis", "ANSWER: B)", "B", True, True),
    ("with the option's text", "ANSWER: B) the second", "B", True, True),
    ("because", "ANSWER: B. because", "B", True, True),
    ("next line", "ANSWER:\nB", "B", True, True),
    ("hedge: first wins", "ANSWER: B\nANSWER: A", "B", False, True),
    ("correction: last wins", "ANSWER: A\nwait.\nANSWER: B", "B", True, False),
    ("all letters in lines", "ANSWER: A\nANSWER: B\nANSWER: C\nANSWER: D", "D", True, False),
    ("two letters", "ANSWER: A, B", "B", False, False),
    ("and", "ANSWER: B and C", "B", False, False),
    ("or", "ANSWER: B) or C)", "B", False, True),
    ("slash", "ANSWER: B/C", "B", False, True),
    ("brackets", "ANSWER: [B]", "B", True, False),
    ("brackets and text", "ANSWER: (B) the second", "B", True, False),
    ("dash and text", "ANSWER: B - the second", "B", True, True),
    ("text in brackets", "ANSWER: B (the second)", "B", True, True),
    ("text that names a letter", "ANSWER: B) vitamin C", "B", True, True),
    ("text that begins with a letter", "ANSWER: C) A = 1, B = 2", "C", True, True),
    ("an article", "ANSWER: A lot", "A", False, False),
    ("glued", "ANSWER: ABCD", "B", False, False),
    ("not an option", "ANSWER: E", "B", False, False),
    ("no answer line", "The answer is B", "B", False, False),
    ("boxed only", "\\boxed{B}", "B", False, False),
    ("thinking only", "<think>ANSWER: B</think>", "B", False, False),
    ("unclosed thinking", "<think>\nANSWER: B", "B", False, True),
    ("template echoed", "ANSWER: $LETTER", "B", False, False),
    ("empty", "", "B", False, False),
)


def _call(arguments: object, name: str = "f") -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


# f(n: integer, x: float, ok: boolean, s: string, v: array of float)
TARGET = "f(n=5, x=8, ok=True, s='a', v=[1, 2.5])"
RIGHT = {"n": 5, "x": 8, "ok": True, "s": "a", "v": [1, 2.5]}
FUNCTION = {
    "name": "f",
    "description": "A function.",
    "parameters": {
        "type": "dict",
        "properties": {
            "n": {"type": "integer", "description": "n"},
            "x": {"type": "float", "description": "x"},
            "ok": {"type": "boolean", "description": "ok"},
            "s": {"type": "string", "description": "s"},
            "v": {"type": "array", "items": {"type": "float"}, "description": "v"},
            "more": {"type": "string", "description": "optional"},
        },
        "required": ["n", "x", "ok", "s", "v"],
    },
}

CALLS = _cases(
    "bfcl",
    ("plain", _call(RIGHT), TARGET, True, True),
    ("text before", "I call it.\n" + _call(RIGHT), TARGET, True, True),
    ("unclosed", _call(RIGHT).removesuffix("</tool_call>"), TARGET, True, True),
    ("other order", _call(dict(reversed(RIGHT.items()))), TARGET, True, True),
    ("float for a float", _call({**RIGHT, "x": 8.0}), TARGET, True, True),
    ("integers in a float array", _call({**RIGHT, "v": [1.0, 2.5]}), TARGET, True, True),
    ("float for an integer", _call({**RIGHT, "n": 5.0}), TARGET, False, True),
    ("one for true", _call({**RIGHT, "ok": 1}), TARGET, False, True),
    ("true in an array", _call({**RIGHT, "v": [True, 2.5]}), TARGET, False, True),
    ("text for a number", _call({**RIGHT, "n": "5"}), TARGET, False, False),
    ("other value", _call({**RIGHT, "n": 6}), TARGET, False, False),
    ("extra argument", _call({**RIGHT, "more": ""}), TARGET, False, False),
    ("missing argument", _call({key: value for key, value in RIGHT.items() if key != "s"}), TARGET, False, False),
    ("other function", _call(RIGHT, name="g"), TARGET, False, False),
    ("twice", _call(RIGHT) + _call(RIGHT), TARGET, False, False),
    ("one right, one broken", _call(RIGHT) + "<tool_call>{</tool_call>", TARGET, False, False),
    ("not JSON", "<tool_call>\nf(n=5)\n</tool_call>", TARGET, False, False),
    ("single quotes", _call(RIGHT).replace('"', "'"), TARGET, False, False),
    ("no arguments", '<tool_call>{"name": "f"}</tool_call>', TARGET, False, False),
    ("arguments as text", _call(json.dumps(RIGHT)), TARGET, False, False),
    ("arguments as a list", _call([5, 8]), TARGET, False, False),
    ("name is no text", '<tool_call>{"name": 1, "arguments": {}}</tool_call>', TARGET, False, False),
    ("bare JSON", json.dumps({"name": "f", "arguments": RIGHT}), TARGET, False, False),
    ("nested deeply", "<tool_call>" + "[" * 100_000, TARGET, False, False),
    ("nan", _call(RIGHT).replace("8", "NaN"), TARGET, False, False),
    ("empty", "", TARGET, False, False),
)

PROMPT = 'import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef add(a: int, b: int) -> int:\n    """Sum of a and b.\n    >>> add(1, 2)\n    3\n    """\n'
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n    assert candidate(2, 2) == 4\n"
_GOOD = "def add(a, b):\n    return a + b\n"
_TRUE = (
    "class T:\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n        return False\n"
    "    def __hash__(self):\n        return 1\n"
)


def _fence(code: str, label: str = "python") -> str:
    return f"```{label}\n{code}```"


_HELPER_LAST = "def add(a, b):\n    return twice(a) - a + b\n\n\ndef twice(x):\n    return 2 * x\n"
_HELPER_FIRST = "def twice(x):\n    return 2 * x\n\n\ndef add(a, b):\n    return twice(a) - a + b\n"

CODE = _cases(
    "humaneval",
    ("body", "    return a + b\n", "add", True, True),
    ("fenced function", _fence(_GOOD), "add", True, True),
    ("py fence", _fence(_GOOD, "py"), "add", True, False),
    ("blank after the label", _fence(_GOOD, "python "), "add", True, False),
    ("no label", _fence(_GOOD, ""), "add", True, True),
    ("capital label", _fence(_GOOD, "Python"), "add", True, False),
    ("fence never closed", "```python\n" + _GOOD, "add", True, False),
    ("CRLF", _fence(_GOOD).replace("\n", "\r\n"), "add", True, False),
    ("unfenced function", _GOOD, "add", True, True),
    ("prose around unfenced code", f"Here it is:\n\n{_GOOD}\nThis adds two numbers.", "add", True, False),
    ("tab indent", _fence("def add(a, b):\n\treturn a + b\n"), "add", True, False),
    ("fenced body", _fence("    return a + b\n"), "add", True, False),
    ("fenced body without indent", _fence("return a + b\n"), "add", True, False),
    ("tab-indented body", "\treturn a + b\n", "add", True, False),
    ("helper after", _fence(_HELPER_LAST), "add", True, True),
    ("helper before", _fence(_HELPER_FIRST), "add", True, False),
    ("uses the stub's helper", _fence("def add(a, b):\n    return helper(a) + b - 1\n"), "add", True, True),
    ("uses the stub's import", _fence("def add(a, b):\n    return int(math.floor(a + b))\n"), "add", True, True),
    ("example in a second block", _fence(_GOOD) + "\nUse:\n" + _fence("print(add(1, 2))\n"), "add", True, True),
    ("draft, then right", _fence("def add(a, b):\n    return a\n") + "\nNo:\n" + _fence(_GOOD), "add", True, False),
    ("shell block first", _fence("pip install x\n", "bash") + "\n" + _fence(_GOOD), "add", True, True),
    (
        "thinking with code",
        "<think>\n" + _fence("def add(a, b):\n    return 0\n") + "</think>\n" + _fence(_GOOD),
        "add",
        True,
        True,
    ),
    ("only in thinking", "<think>\n" + _fence(_GOOD), "add", False, True),
    ("main block reads stdin", _fence(_GOOD + '\nif __name__ == "__main__":\n    input()\n'), "add", True, False),
    ("lambda", _fence("add = lambda a, b: a + b\n"), "add", True, False),
    ("wrong", _fence("def add(a, b):\n    return a - b\n"), "add", False, False),
    ("stub only", _fence(PROMPT), "add", False, False),
    ("empty", "", "add", False, False),
    ("null byte", "    return a + b\x00\n", "add", False, False),
    ("no code", "I cannot do that.", "add", False, False),
    # --- exploits ---
    ("sys.exit while loading", "    return 0\nimport sys\nsys.exit(0)\n", "add", False, True),
    ("os._exit while loading", "    return 0\nimport os\nos._exit(0)\n", "add", False, True),
    ("os._exit when called", "    import os\n    os._exit(0)\n", "add", False, True),
    ("quit when called", "    raise SystemExit(0)\n", "add", False, True),
    ("equal to all", "    return T()\n" + _TRUE, "add", False, True),
    ("subclass equal to all", "    return type('T', (int,), {'__eq__': lambda s, o: True})(0)\n", "add", False, True),
    (
        "check replaced from within",
        "    import __main__\n    __main__.check = print\n    return 0\n",
        "add",
        False,
        False,
    ),
    (
        "tests switched off by a thread",
        "    return 0\nimport threading, os\nthreading.Timer(0, os._exit, [0]).start()\nimport time\ntime.sleep(1)\n",
        "add",
        False,
        True,
    ),
    ("builtins patched", "    return 0\nimport builtins\nbuiltins.AssertionError = KeyError\n", "add", False, False),
    (
        "exit code patched by atexit",
        "    return 0\nimport atexit, os\natexit.register(lambda: os._exit(0))\n",
        "add",
        False,
        True,
    ),
    ("excepthook exits", "    return 0\nimport sys, os\nsys.excepthook = lambda *a: os._exit(0)\n", "add", False, True),
    ("parent exits, child tests", "    return 0\nimport os\nif os.fork():\n    os._exit(0)\n", "add", False, True),
    (
        "prints what a harness might look for",
        "    return 0\nprint('OK', 'passed', 'all tests passed', 0)\n",
        "add",
        False,
        False,
    ),
    (
        "writes answers to every descriptor",
        "    return 0\nimport os\nfor n in range(1, 32):\n    try:\n"
        '        os.write(n, b\'{"ready": true}\\n\' + b\'{"value": ["c", true]}\\n\' * 9)\n    except OSError:\n        pass\n',
        "add",
        False,
        False,
    ),
    (
        "looks for the expected value in frames",
        "    import sys\n    frame, found = sys._getframe(), []\n    while frame:\n"
        "        found += [c for c in frame.f_code.co_consts if isinstance(c, int)]\n        frame = frame.f_back\n"
        "    return found[-1] if found else 0\n",
        "add",
        False,
        False,
    ),
    (
        "looks for the tests in memory",
        "    import gc\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'check' in o:\n"
        "            o['check'] = lambda *x: None\n    return 0\n",
        "add",
        False,
        False,
    ),
    ("kills its parent", "    return 0\nimport os\nos.kill(os.getppid(), 9)\n", "add", False, False),
    ("reads stdin", "    return eval(input())\n", "add", False, False),
    ("endless", "    while True:\n        pass\n", "add", False, False),
    ("recursion", "    return add(a, b)\n", "add", False, False),
    ("memory", "    return [0] * 10**11\n", "add", False, False),
    ("huge answer", "    return 'x' * 10**8\n", "add", False, False),
    ("deep answer", "    x = []\n    for _ in range(10**5):\n        x = [x]\n    return x\n", "add", False, False),
    ("generator without end", "    import itertools\n    return itertools.count()\n", "add", False, False),
    (
        "leaves a daemon",
        "    return a + b\nimport os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(99)\n",
        "add",
        True,
        True,
    ),
)

CASES = [*NUMERIC, *AIME, *CHOICE, *CALLS, *CODE]
