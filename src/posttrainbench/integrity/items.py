"""The texts of a benchmark's test items, for comparison with what an agent wrote. They never go into evidence."""

from __future__ import annotations

from posttrainbench.errors import ConfigurationError


def test_texts(benchmark: str) -> dict[str, str]:
    """Item id -> question text.

    Raises:
        ConfigurationError: this version has no items of that benchmark at hand.
    """
    if benchmark == "smoke-math":
        from posttrainbench.smoke.problems import test_items

        return {item["id"]: item["question"] for item in test_items()}
    raise ConfigurationError(f"no test items of {benchmark} at hand")
