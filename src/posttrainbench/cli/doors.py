"""`ptb doors`: what the web door needs to look into TLS."""

from __future__ import annotations

import click

from posttrainbench.files import remove_tree
from posttrainbench.gateway import intercept_install


@click.group("doors")
def command() -> None:
    """Install or remove the interceptor, which `--web-tls intercept` needs (PTB_MITM_ENV, PTB_MITM_PYTHON)."""


@command.command("install")
def install() -> None:
    """Install the pinned mitmproxy, with hashes, into an environment of its own (about 125 MB)."""
    before = intercept_install.installed()
    if before is None:
        print(f"installing mitmproxy {intercept_install.version()} ...", flush=True)
    found = before or intercept_install.install()
    state = "was already" if before else "is"
    print(f"mitmproxy {found.version} (Python {found.python}) {state} in {found.path}")


@command.command("list")
def list_() -> None:
    """Say whether it is installed."""
    found = intercept_install.installed()
    where = f"installed in {found.path} (Python {found.python})" if found else "not installed"
    print(f"mitmproxy {intercept_install.version()}  {where}")


@command.command("remove")
def remove() -> None:
    """Remove it."""
    found = intercept_install.installed()
    if found is not None:
        remove_tree(found.path)
    print(f"removed {found.path}" if found else "was not installed")
