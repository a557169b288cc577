"""Chat templates: ours, chosen by the declared base model, rendered with the settings that vLLM and transformers use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrainbench.errors import ConfigurationError
from posttrainbench.files import sha256_file

TEMPLATES = Path(__file__).parent / "templates"


def template_file(name: str, directory: Path | None = None) -> Path:
    """Path of a template by name.

    Raises:
        ConfigurationError: no such template.
    """
    path = (directory or TEMPLATES) / f"{name}.jinja"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (directory or TEMPLATES).glob("*.jinja"))) or "none"
        raise ConfigurationError(f"no chat template {name!r} in {path.parent} (there: {known})")
    return path


def template_identity(path: Path) -> str:
    """Name and content hash of a template, for the record."""
    return f"{path.stem}@sha256:{sha256_file(path)[:16]}"


@lru_cache(maxsize=16)
def _compile(source: str) -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        import json

        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    # trim_blocks and lstrip_blocks as transformers sets them (reference.md part 2).
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


def render(path: Path, messages: Sequence[dict[str, Any]], **variables: Any) -> str:
    """Render a conversation to the text that the model continues.

    Args:
        path: template file.
        messages: dicts with `role` and `content` (and `tool_calls` in tool-calling templates).
        variables: further template variables, such as `tools` and `bos_token`.
    """
    compiled = _compile(path.read_text(encoding="utf-8"))
    return str(compiled.render(messages=list(messages), add_generation_prompt=True, **variables))
