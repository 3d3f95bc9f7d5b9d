"""The command line. Commands are imported when they are called, torch when they need it."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from ..errors import XmplugError

_COMMANDS = {
    "train": "train a model on a corpus",
    "predict": "label texts with a trained model",
    "evaluate": "measure a trained model on a split",
    "compare": "hold methods against one another under one budget",
    "ensemble": "make several runs one",
    "calibrate": "make a run's scores probabilities",
    "demo": "train, measure and try AttentionXML on the bundled corpus",
    "data": "look at, check, convert and fetch corpora",
    "config": "print the full configuration of a run to be",
    "plugins": "what is installed; show or check one, or begin a new one",
    "info": "versions, devices and kernels in use",
}


class _Commands(click.Group):
    """Reads each command's module only when that command is called, so that `--help` stays quick."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(f"{__name__}.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(self, context: click.Context, args: list[str]):  # type: ignore[no-untyped-def]
        from ..errors import nearest

        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            context.fail(f"no command {args[0]!r}: {nearest(args[0], _COMMANDS)}")
        return super().resolve_command(context, args)


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xmplug")
@click.pass_context
def xmplug(context: click.Context) -> None:
    """Extreme multi-label text classification with plugins.

    Shell completion: eval "$(_XMPLUG_COMPLETE=bash_source xmplug)" (or zsh_source, fish_source).
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run a command; an expected error is one line on standard error and a non-zero exit code."""
    try:
        sys.exit(xmplug.main(standalone_mode=False) or 0)
    except XmplugError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror}; check the path, rights and free space", 1)
    except MemoryError as error:
        _fail(f"not enough memory ({error or 'no more is known'}); choose fewer features, labels or texts at a time", 1)
    except (click.Abort, KeyboardInterrupt):
        print("xmplug: stopped", file=sys.stderr)
        sys.exit(130)


def _fail(message: str, code: int) -> NoReturn:
    print(f"xmplug: error: {message}", file=sys.stderr)
    sys.exit(code)
