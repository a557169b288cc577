"""`ptb image`: build the system inside container sandboxes, and see what was built."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from posttrainbench.errors import ConfigurationError, PTBError
from posttrainbench.images import KINDS, Identity, Order, build, get_kind, identity, prepare, records
from posttrainbench.images.engines import ENGINES

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group("image")
def image() -> None:
    """Build the image that the sandboxes podman, docker and apptainer run, and see what was built."""


@image.command("build")
@click.option("--kind", type=click.Choice(tuple(KINDS)), required=True, help="What it is for.")
@click.option(
    "--engine", type=click.Choice(tuple(ENGINES)), default="podman", show_default=True, help="What builds it."
)
@click.option(
    "--base", metavar="IMAGE", help="Image below: Debian 12 for cpu, Ubuntu 24.04 for cuda. [default: pulled]"
)
@click.option("--tag", metavar="NAME", help="Name of the result; with apptainer a .sif file.")
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of wheels to take before any index; those that the lock names by hash.",
)
@click.option(
    "--pip-config", type=_FILE, help="pip.conf for the build (own index, credentials); not kept in the image."
)
@click.option("--ca", type=_FILE, help="Certificates to trust during the build; not kept in the image.")
@click.option("--network", default="host", show_default=True, help="Network of the build's commands.")
@click.option(
    "--write",
    type=click.Path(path_type=Path, file_okay=False),
    help="Build nothing: write what the engine reads into this directory and print the command.",
)
@click.argument("extra", nargs=-1, metavar="[-- ENGINE-OPTIONS...]")
def build_command(write: Path | None, extra: tuple[str, ...], **options: object) -> None:
    """Build an image from its lock file and record its digest. Options after `--` go to the engine's build command."""
    order = Order(extra=extra, **options)  # type: ignore[arg-type]
    if write is not None:
        _write(order, write)
        return
    built = build(order)
    click.echo(json.dumps({**built.record, "record": str(built.path)}, indent=2))


def _write(order: Order, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty; --write needs a directory of its own")
    argv = prepare(order, folder.absolute())
    click.echo(f"cd {shlex.quote(str(folder.absolute()))} && {shlex.join(argv)}")


@image.command("show")
@click.argument("name", required=False, metavar="[IMAGE]")
@click.option("--engine", type=click.Choice(tuple(ENGINES)), default="podman", show_default=True, help="Whose IMAGE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(name: str | None, engine: str, as_json: bool) -> None:
    """What IMAGE is, as the engine tells; without a name, every image that was built here."""
    if name is not None:
        found = identity(engine, name)
        if as_json:
            click.echo(json.dumps(found.as_json(), indent=2))
        else:
            _print(name, engine, found)
        return
    known = [{**record, "state": _state(record), "record": str(path)} for path, record in records()]
    if as_json:
        click.echo(json.dumps(known, indent=2))
        return
    if not known:
        click.echo("No image was built here yet; see `ptb image build --help`.")
    for record in known:
        size = f"{record.get('size_bytes', 0) / 1e9:.2f} GB"
        click.echo(f"{record['image']}  {record['engine']}  {record['kind']}  {size}  {record['date']}")
        click.echo(f"    {record['digest']}")
        click.echo(f"    {record['state']}")


def _print(name: str, engine: str, found: Identity) -> None:
    click.echo(f"{name}  {engine}  {found.kind or 'not built by ptb'}  {found.size_bytes / 1e9:.2f} GB")
    for title, value in (
        ("digest", found.digest),
        ("lock", found.lock),
        ("recipe", found.recipe),
        ("base", found.base),
        ("version", found.version),
    ):
        click.echo(f"    {title:8} {value or '-'}")
    if found.kind in KINDS:
        click.echo(f"    {_age(found)}")


def _age(found: Identity) -> str:
    if found.kind not in KINDS:
        return "not built by ptb"
    if found.lock == get_kind(found.kind).lock_sha256():
        return "its lock is the one of this version"
    return "its lock is not the one of this version: build it again before runs that are to be compared"


def _state(record: dict[str, object]) -> str:
    """What became of a recorded image."""
    try:
        found = identity(str(record["engine"]), str(record["image"]))
    except PTBError as error:
        return f"cannot be seen: {error}"
    if found.digest != record["digest"]:
        return f"the name stands for another image now: {found.digest}"
    return f"there; {_age(found)}"


command = image
