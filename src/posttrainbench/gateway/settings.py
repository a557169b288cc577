"""Settings of the gateway's services as they come back from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from posttrainbench.errors import ConfigurationError


def known_settings(
    kind: type, value: Mapping[str, Any], *, of: str, lists: Sequence[str] = (), needed: Sequence[str] = ()
) -> dict[str, Any]:
    """The arguments of a dataclass of settings.

    Args:
        kind: the dataclass.
        value: what its `to_json` gave.
        of: the service, for the message.
        lists: settings that are tuples.
        needed: settings without which there is nothing to serve.

    Raises:
        ConfigurationError: an unknown setting, or one that is missing.
    """
    known = {each.name for each in fields(kind)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise ConfigurationError(f"{of} has no setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
    missing = [name for name in needed if name not in value]
    if missing:
        raise ConfigurationError(f"{of} has no {missing[0]!r}")
    return {**value, **{name: tuple(value.get(name, ())) for name in lists}}
