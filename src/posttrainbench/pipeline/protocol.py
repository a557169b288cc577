"""The versioned rules that a result was made under. A change that can move a score or a verdict raises the version."""

from __future__ import annotations

from typing import Any

VERSION = "1"


def describe() -> dict[str, Any]:
    """The protocol as recorded with every run."""
    return {
        "version": VERSION,
        "primary_scorer": "strict",
        "fallback": {"flagged": "base score", "no_submission": "base score", "unloadable": "base score"},
        "network": "closed",
    }
