"""The judges that are to be asked about a sweep's runs afterwards: the [judge] table, and whether they can be asked.

    [judge]
    model = "anthropic/claude-opus-4-6"     # as for `ptb judge --model`
    required = true                         # default false: one that cannot be asked is only a warning

Judges are asked where `ptb judge` runs and not on the nodes, so that is where this is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrainbench.launch.checks import Checked
from posttrainbench.launch.service import ask_inspect_model
from posttrainbench.launch.tomlfile import TomlFile


def judge_table(file: TomlFile, table: Any) -> dict[str, Any]:
    """Check the [judge] table; empty without one.

    Raises:
        ConfigurationError: what is wrong, with line and key.
    """
    if table is None:
        return {}
    file.only("judge", table, ("model", "required"))
    model = file.text("judge.model", table.get("model"))
    if "/" not in model.strip("/"):
        raise file.wrong("judge.model", "is to be PROVIDER/MODEL, such as anthropic/claude-opus-4-6", value=model)
    return {"model": model, "required": file.flag("judge.required", table.get("required", False))}


def judge_check(judge: Mapping[str, Any]) -> list[Checked]:
    """Ask the judge's model for one token; nothing without a judge."""
    if not judge:
        return []
    return [ask_inspect_model("judge", judge["model"], needed=judge["required"])]
