"""`ptb doctor`: is this machine fit for runs, and does its sandbox hold? One line per check, with the fix."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys

import click

from posttrainbench.errors import PTBError
from posttrainbench.sandbox import Check, get_backend


@click.command()
@click.option("--sandbox", default="bubblewrap", show_default=True, envvar="PTB_SANDBOX", help="Sandbox back end.")
@click.option("--image", envvar="PTB_IMAGE", help="Container image, for sandboxes that need one.")
@click.option("--json", "as_json", is_flag=True, envvar="PTB_DOCTOR_JSON", help="Print one JSON object.")
def doctor(sandbox: str, image: str | None, as_json: bool) -> None:
    """Check this machine and try to break out of its sandbox.

    Exit status 0 when everything that runs need is in order, 2 when not. "note" marks what is optional.
    """
    from posttrainbench.sandbox.machine import machine_checks
    from posttrainbench.sandbox.probes import probe

    try:
        backend = get_backend(sandbox, image=image)
    except PTBError as error:
        raise click.UsageError(str(error)) from error  # exit status 2
    checks = backend.preflight()
    has = None
    if all(check.ok or not check.required for check in checks):
        checks += probe(backend)  # without a sandbox there is nothing to try
    with contextlib.suppress(PTBError):  # no engine: said above
        has = backend.capabilities()
        checks += machine_checks(backend)
    checks.append(_web_tls())
    fit = all(check.ok for check in checks if check.required)
    if as_json:
        report = {
            "ok": fit,
            "backend": backend.name,
            "capabilities": None if has is None else dataclasses.asdict(has),
            "checks": [dataclasses.asdict(check) for check in checks],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(_line(check, width))
        click.echo("This machine is fit for runs." if fit else "This machine is not fit for runs: mend what says FAIL.")
    if not fit:
        sys.exit(2)


def _web_tls() -> Check:
    """Whether the web door could look into TLS; only runs with `--web-tls intercept` need that."""
    from posttrainbench.gateway import intercept_install

    found = intercept_install.installed()
    detail = (
        f"mitmproxy {found.version} in {found.path}" if found else "mitmproxy is not installed: no --web-tls intercept"
    )
    return Check(name="web door, TLS", ok=found is not None, detail=detail, fix="ptb doors install", required=False)


def _line(check: Check, width: int) -> str:
    word = "ok" if check.ok else "FAIL" if check.required else "note"
    fix = f"  -> {check.fix}" if check.fix and not check.ok else ""
    return f"{word:4}  {check.name:{width}}  {check.detail}{fix}"
