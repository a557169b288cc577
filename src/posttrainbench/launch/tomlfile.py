"""A TOML file of a user's whose mistakes are said with file, line and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError


class TomlFile:
    """A parsed file that knows, for its errors, in which line a key stands.

    Attributes:
        path: the file.
        table: its content.
    """

    def __init__(self, path: Path, *, what: str = "sweep file") -> None:
        """Read it.

        Raises:
            ConfigurationError: it is not there, cannot be read, or is not TOML.
        """
        self.path = path
        try:
            self._text = path.read_text(encoding="utf-8")
            self.table = tomllib.loads(self._text)
        except FileNotFoundError:
            raise ConfigurationError(f"there is no {what} {path}") from None
        except OSError as error:
            raise ConfigurationError(f"the {what} {path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the {what} {path} is not TOML: {error}") from None

    def wrong(self, key: str, why: str, *, value: Any = None) -> ConfigurationError:
        """The error that says why the value at a dotted key cannot be."""
        line = self._line(key, value)
        return ConfigurationError(f"{self.path}{f':{line}' if line else ''}: {key}: {why}")

    def _line(self, key: str, value: Any) -> int | None:
        """The first line that holds the value, else the one that sets the key; tomllib keeps no positions."""
        table, _, last = key.rpartition(".")
        lines = self._text.splitlines()
        # a key of a table is looked for from that table's head on: other tables may have one of the same name
        heads = (number for number, line in enumerate(lines) if re.match(rf"\s*\[+\s*{re.escape(table)}\s*\]", line))
        first = next(heads, 0) if table else 0
        patterns = [rf"^\s*{re.escape(last)}\s*=", rf"^\s*\[+\s*{re.escape(key)}\s*\]", rf"\b{re.escape(last)}\s*="]
        if isinstance(value, str):
            patterns.insert(0, rf"[\"']{re.escape(value)}[\"']")
        for pattern in patterns:
            for number, line in enumerate(lines[first:], start=first + 1):
                if re.search(pattern, line) and not line.lstrip().startswith("#"):
                    return number
        return None

    def only(self, where: str, table: Any, known: Sequence[str]) -> None:
        """Raise unless `table` is one that has no other keys."""
        if not isinstance(table, dict):
            raise self.wrong(where, "is to be a table")
        for key in table:
            if key not in known:
                dotted = f"{where}.{key}" if where else key
                raise self.wrong(dotted, f"there is no such key; known: {', '.join(known)}")

    def text(self, key: str, value: Any) -> str:
        """Raise unless it is text."""
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "is to be text")
        return value

    def texts(self, key: str, value: Any) -> tuple[str, ...]:
        """A list of texts; a single one counts as a list."""
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) and entry for entry in value):
            raise self.wrong(key, "is to be a list of texts")
        return tuple(value)

    def count(self, key: str, value: Any, *, least: int = 1) -> int:
        """Raise unless it is a whole number, `least` or more."""
        if type(value) is not int or value < least:
            raise self.wrong(key, f"is to be a whole number from {least}", value=value)
        return value

    def flag(self, key: str, value: Any) -> bool:
        """Raise unless it is true or false."""
        if type(value) is not bool:
            raise self.wrong(key, "is to be true or false", value=value)
        return value

    def number(self, key: str, value: Any) -> float:
        """Raise unless it is a number above 0."""
        if type(value) not in (int, float) or not 0 < value < 1e9:
            raise self.wrong(key, "is to be a number > 0", value=value)
        return float(value)
