"""The versioned rules that a result was made under. A change that can move a score or a verdict raises the version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VERSION = "1"

LOCAL_TEACHERS = "allowed"
"""Whether training data may come from another model that the agent runs itself: `allowed` or `forbidden`.

The paper's rules allow any model for inference and forbid to fine-tune or submit another one (reference.md part 3); a
language model behind an API is forbidden in either case. Recorded with every run: a later change does not judge earlier runs
anew.
"""


def describe(
    *, network: str, web_tls: str = "passthrough", test_data: str = "visible", test_feedback: str = "score"
) -> dict[str, Any]:
    """The protocol as recorded with every run.

    Args:
        network: the policy of the web door.
        web_tls: whether the door looks into TLS (`intercept`) or passes it on.
        test_data: whether the agent has the test items (`visible`) or not (`sealed`).
        test_feedback: what it is told of sealed evaluations.
    """
    return {
        "version": VERSION,
        "primary_scorer": "strict",
        "fallback": {"flagged": "base score", "no_submission": "base score", "unloadable": "base score"},
        "network": Path(network).name,
        "web_tls": None if network == "closed" else web_tls,
        "local_teachers": LOCAL_TEACHERS,
        "test_data": test_data if test_data == "visible" else f"{test_data} ({test_feedback})",
    }
