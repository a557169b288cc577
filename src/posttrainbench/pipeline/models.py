"""From the name that a user gives to directories with a base model and its instruct counterpart."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from posttrainbench import catalog
from posttrainbench.catalog import BaseModel
from posttrainbench.errors import ConfigurationError, InfrastructureError

# architecture -> template, for directories and hub ids that the catalogue does not have
_TEMPLATES = {"qwen": "qwen3", "smollm": "smollm3", "gemma": "gemma3"}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A base model whose files are on this machine.

    Attributes:
        entry: catalogue entry, or one made up for a directory or hub id of the user's.
        base: directory of the base model.
        instruct: directory of the instruct counterpart; `None` if unknown or not to be had, see `instruct_problem`.
        revision: hub commit of the base model, where it came from the hub.
    """

    entry: BaseModel
    base: Path
    instruct: Path | None
    instruct_problem: str | None = None
    revision: str | None = None


def _hub_directory(name: str) -> Path:
    """The snapshot of a hub model: from the local cache if complete, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError:
        raise ConfigurationError(
            f"model {name!r} is gated: accept its licence at https://huggingface.co/{name} and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigurationError(f"the model hub has no model {name!r}") from None
    except Exception as error:  # whatever the client raises, the file is not here and the hub did not give it
        raise InfrastructureError(
            f"model {name!r} is not in the local cache and could not be fetched ({type(error).__name__}); "
            "check the network or HF_ENDPOINT, or give a directory"
        ) from None


def _directory(location: str) -> Path:
    builtin = catalog.builtin_directory(location)
    if builtin is not None:
        if not (builtin / "config.json").is_file():
            raise ConfigurationError(f"the built-in model {builtin.name} is missing; run scripts/build_tiny_models.py")
        return builtin
    path = Path(location)
    return path if path.is_absolute() else _hub_directory(location)


def _check(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ConfigurationError(f"{path} is not a model directory: it has no config.json")
    if not any(path.glob("*.safetensors")):
        raise ConfigurationError(f"{path} has no weights in safetensors files")
    return path


def _template_of(path: Path) -> str:
    try:
        names = " ".join(json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or [])
    except (OSError, ValueError, AttributeError, TypeError):
        raise ConfigurationError(f"{path / 'config.json'} cannot be read") from None
    for word, template in _TEMPLATES.items():
        if word in names.lower():
            return template
    raise ConfigurationError(
        f"no chat template for architecture {names or 'unknown'!r}; known: {', '.join(_TEMPLATES)}"
    )


def resolve(name: str, *, instruct: str | None = None) -> ResolvedModel:
    """Find a base model by catalogue name, hub id or directory, and fetch what is not here.

    Args:
        name: as the user wrote it.
        instruct: directory or hub id of the instruct counterpart, for models outside the catalogue.

    Raises:
        ConfigurationError: no such model, or the directory is not one.
        InfrastructureError: the hub could not be reached.
    """
    entry = catalog.find_base_model(name)
    if entry is None:
        for other in catalog.base_models():
            if other.instruct and name.lower() in (other.instruct.lower(), other.instruct.partition(":")[2].lower()):
                raise ConfigurationError(f"{name!r} is the instruct counterpart of {other.name!r}; name the base model")
        path = Path(name).expanduser()
        if path.is_dir():
            location = str(_check(path.resolve()))
            entry = BaseModel(
                name=path.resolve().name, base=location, instruct=instruct, template=_template_of(Path(location))
            )
        elif _HUB_ID.match(name) and not name.startswith((".", "/")) and not path.parent.is_dir():
            template = _template_of(_hub_directory(name))
            entry = BaseModel(name=name.rpartition("/")[2], base=name, instruct=instruct, template=template)
        elif "/" in name:
            raise ConfigurationError(f"there is no model directory {name!r}")
        else:
            raise catalog.unknown("base model", name, (known.name for known in catalog.base_models()))
    base = _check(_directory(entry.base))
    reference, problem, found = instruct or entry.instruct, None, None
    if reference is None:
        problem = "no instruct counterpart is known for this base model (name one with --instruct)"
    else:
        given = Path(reference).expanduser()
        try:
            found = _check((given if instruct and given.is_dir() else _directory(reference)).resolve())
        except (ConfigurationError, InfrastructureError) as error:
            if instruct:
                raise
            problem = str(error)
    return ResolvedModel(entry=entry, base=base, instruct=found, instruct_problem=problem, revision=_revision(base))


def _revision(path: Path) -> str | None:
    """The commit of a hub snapshot directory, from its place in the cache."""
    return path.name if path.parent.name == "snapshots" else None


def model_to_score(target: str, *, base_model: str | None = None) -> ResolvedModel:
    """A model to be scored as it is: a directory, a hub id, or a base or instruct model of the catalogue.

    Args:
        target: as the user wrote it.
        base_model: the declared base model; it decides the template. Without it the config's architecture does.

    Raises:
        ConfigurationError: no such model, a LoRA adapter, or a directory without weights.
        InfrastructureError: the hub could not be reached.
    """
    declared = None if base_model is None else catalog.find_base_model(base_model)
    if base_model is not None and declared is None:
        raise catalog.unknown("base model", base_model, (known.name for known in catalog.base_models()))
    path = Path(target).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ConfigurationError(
                f"{target} is a LoRA adapter without its base; merge it first (peft: merge_and_unload, save_pretrained)"
            )
        directory = _check(path.resolve())
    else:
        known = catalog.find_base_model(target)
        for entry in catalog.base_models():
            if entry.instruct and target.lower() in (entry.instruct.lower(), entry.instruct.partition(":")[2].lower()):
                return ResolvedModel(entry=declared or entry, base=_check(_directory(entry.instruct)), instruct=None)
        if known is not None:
            return ResolvedModel(entry=declared or known, base=_check(_directory(known.base)), instruct=None)
        if not _HUB_ID.match(target) or path.parent.is_dir():
            raise ConfigurationError(
                f"there is no model directory {target!r}, nor a model of that name in the catalogue"
            )
        directory = _check(_hub_directory(target))
    if declared is None:
        declared = BaseModel(name=directory.name, base=str(directory), instruct=None, template=_template_of(directory))
    return ResolvedModel(entry=declared, base=directory, instruct=None)
