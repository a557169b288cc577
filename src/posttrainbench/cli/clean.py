"""`ptb clean`: list what nobody needs any more, with sizes and reasons, and remove it when told to."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import click

from posttrainbench.disk import DEFAULT, KINDS, Item, Kept, Search, find, measure, remove, size_text
from posttrainbench.errors import PTBError
from posttrainbench.files import printable

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _age(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is no age; give a number with s, m, h, d or w, such as 7d")
    return float(match[1]) * _UNITS[match[2]]


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    kinds = tuple(part.strip() for part in value.split(",") if part.strip())
    if "all" in kinds:
        raise click.BadParameter(f"name the kinds: {', '.join(KINDS)}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'} is no kind; known: {', '.join(KINDS)}")
    return kinds


def _targets(targets: tuple[Path, ...], results: Path) -> tuple[Path, ...]:
    """As named, or as named within the results directory."""
    if not targets:
        return (results,) if results.is_dir() else ()
    return tuple(path if path.is_absolute() or path.exists() else results / path for path in targets)


@click.command(
    "clean",
    epilog="Kinds: " + "; ".join(f"{kind}: {text}" for kind, text in KINDS.items()) + ".",
)
@click.argument("targets", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--results",
    envvar="PTB_RESULTS",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Results directory; also PTB_RESULTS.",
)
@click.option(
    "--what",
    "kinds",
    callback=_kinds,
    help=f"Kinds, with commas between them (see below). [default: {','.join(DEFAULT)}]",
)
@click.option(
    "--older-than", "older_s", callback=_age, help="Only what is older, such as 12h or 7d. [default: any age]"
)
@click.option(
    "--include-unfinished", "unfinished", is_flag=True, help="Also of runs that `ptb resume` would go on with."
)
@click.option("--yes", is_flag=True, help="Remove it. Without this nothing is removed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    targets: tuple[Path, ...],
    results: Path,
    kinds: tuple[str, ...] | None,
    older_s: float | None,
    unfinished: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """List, and with --yes remove, what nobody needs any more: of TARGETS (results directories, sweeps, runs; default: the
    results directory) and, unless TARGETS are named without --what, of this machine.

    Records, results, traces, audits and evaluation logs always stay; so does what belongs to a run that is at work or to
    another user. Exit status: 0 done, 1 something could not be removed, 2 bad input.
    """
    search = Search(
        targets=_targets(targets, results),
        kinds=kinds or DEFAULT,
        older_s=older_s,
        unfinished=unfinished,
        machine=not targets or kinds is not None,
    )
    items, kept = find(search)
    freed = measure([item.path for item in items if item.container is None]).freed
    errors: list[str] = []
    done: list[Item] = []
    for item in items if yes else []:
        try:
            remove(item)
            done.append(item)
        except PTBError as error:
            errors.append(str(error))
        except OSError as error:
            errors.append(f"{item.path} could not be removed: {error.strerror}")
    if yes and errors:
        freed = sum(item.size.freed for item in done)
    if as_json:
        print(json.dumps(_report(items, kept, done, errors, freed, dry=not yes), indent=2))
    else:
        _say(items, kept, errors, freed, dry=not yes)
    if errors:
        sys.exit(1)


def _report(
    items: list[Item], kept: list[Kept], done: list[Item], errors: list[str], freed: int, *, dry: bool
) -> dict[str, object]:
    return {
        "dry_run": dry,
        "items": [{**item.as_json(), "removed": item in done} for item in items],
        "kept": [{"path": str(each.path), "reason": each.reason} for each in kept],
        "errors": errors,
        "freed_bytes": freed,
    }


def _say(items: list[Item], kept: list[Kept], errors: list[str], freed: int, *, dry: bool) -> None:
    width = max((len(item.what) for item in items), default=0)
    for item in items:
        print(f"{size_text(item.size.held):>9}  {item.what:{width}}  {printable(str(item.path))}  ({item.reason})")
    for each in kept:
        print(f"     kept  {printable(str(each.path))}  ({printable(each.reason)})")
    for error in errors:
        print(f"ptb: {printable(error)}", file=sys.stderr)
    if not items:
        print("nothing to remove")
    elif dry:
        print(f"{size_text(freed)} would be free again; nothing was removed (--yes removes)")
    else:
        print(f"{size_text(freed)} freed")
