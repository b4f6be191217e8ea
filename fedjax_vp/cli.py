"""The command line: parses commands, and turns every error of a user into one line and status 2.

Commands load when they are used, so that `--help` answers at once. What JAX must know before it starts (host
devices, compilation cache) is set in the environment first.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from fedjax_vp import __version__
from fedjax_vp.environment import prepare_jax
from fedjax_vp.errors import UserError

_COMMANDS = {
    "run": "Train a config's method and those beside it; write a run folder.",
    "compare": "Compare run folders or configs, over several seeds.",
    "sweep": "Run a config over seeds and settings, many points in one compiled function.",
    "coldstart": "Measure new videos and new users, by how much is known of them.",
    "report": "Draw the figures and tables of a run folder.",
    "data": "List, import, download and inspect data sets.",
    "list": "List algorithms, models, datasets or configs.",
}
_MODULE_OF = {"list": "listing"}
_OBJECT_OF = {"list": "listing"}


class LazyGroup(click.Group):
    """Commands by name, each imported from `fedjax_vp.commands` when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, with `--debug` among its options."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"fedjax_vp.commands.{_MODULE_OF.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, _OBJECT_OF.get(cmd_name, cmd_name))
        if not any(param.name == "debug" for param in command.params):
            command.params.append(_debug_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Runs a command and exits: 0 done, 1 a defect (traceback), 2 the user's error, 130 interrupted."""
        words = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in words
        words = [word for word in words if word != "--debug"]
        try:
            status = super().main(words, *rest, **{**extra, "standalone_mode": False})
        except Exception as error:
            if debug:
                traceback.print_exc()
            status = _complain(error, debug)
        sys.exit(status if isinstance(status, int) else 0)


def _complain(error: Exception, debug: bool) -> int:
    """One line on stderr for what a user can mend; anything else keeps its traceback."""
    if isinstance(error, click.exceptions.Abort):
        click.echo("interrupted", err=True)
        return 130
    if isinstance(
        error, BrokenPipeError
    ):  # the reader of stdout has left: `fedjax-vp list configs | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, click.ClickException):
        message = error.format_message()
        if isinstance(error, click.UsageError) and error.ctx:
            message += f" (see {error.ctx.command_path} --help)"
    elif isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}; check the path and its permissions"
    else:
        if not debug:
            traceback.print_exception(error)
        return 1
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return 2


def _debug_option() -> click.Option:
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")


@click.group(
    cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["--help", "-h"]}
)
@click.version_option(__version__, prog_name="fedjax-vp")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Federated learning for viewport prediction in 360-degree video: run, compare, report."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


cli.params.append(_debug_option())


def main() -> None:
    """Entry point of the `fedjax-vp` command."""
    prepare_jax()
    cli.main(prog_name="fedjax-vp")
