"""The `ptb` command: one file per subcommand; only parsing, printing and exit codes.

Exit codes: 0 done, 1 a negative answer (a check that failed), 2 bad input or a machine that cannot, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from typing import Any

import click

from posttrainbench import __version__
from posttrainbench.errors import PTBError

# name -> module; loaded when asked for, so that `ptb --help` does not import everything
_COMMANDS = {
    "agents": "agents",
    "analyze": "analyze",
    "audit": "audit",
    "baseline": "baseline",
    "clean": "clean",
    "demo": "demo",
    "doctor": "doctor",
    "doors": "doors",
    "evaluate": "evaluate",
    "image": "image",
    "import": "import_",
    "judge": "judge",
    "leaderboard": "leaderboard",
    "list": "list",
    "plot": "plot",
    "prefetch": "prefetch",
    "redteam": "redteam",
    "resume": "resume",
    "run": "run",
    "scan": "scan",
    "show": "show",
    "sweep": "sweep",
    "site": "site",
    "verdict": "verdict",
    "view": "view",
    "trace": "trace",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        loaded = importlib.import_module(f"posttrainbench.cli.{module}")
        command: click.Command = getattr(loaded, "command", None) or getattr(loaded, module)
        return command


@click.command(cls=_Commands, context_settings={"auto_envvar_prefix": "PTB", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ptb")
def ptb() -> None:
    """Can an AI agent post-train a language model on its own? Run agents, audit them, score and rank them."""


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the `ptb` program. Errors that a user can act on are one line on stderr, without a traceback."""
    # the hub client reports every retry on its own; what came of it is said once, by our error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        ptb.main(args=arguments, prog_name="ptb", standalone_mode=False)
    except PTBError as error:
        _fail(str(error), error.exit_code)
    except click.Abort:
        _fail("interrupted", 130)
    except click.UsageError as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        _fail(f"{error.format_message()}{hint}", 2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BrokenPipeError:
        # the reader of our output has gone (`ptb show | head`); nothing is wrong, and nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"the disk is full ({error.filename or 'while writing'}); free some space and try again", 2)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            _fail(f"{error.filename}: {error.strerror}", 2)
        raise


def _fail(message: str, code: int) -> None:
    print(f"ptb: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
