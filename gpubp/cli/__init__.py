"""The command line: ``gpubp train | predict | export | check | bench | info``, also as ``python -m gpubp``.

This package is thin: a command checks its options before anything else, calls the library, and prints. Modules that
take time to import are imported inside the commands.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import gpubp
from gpubp.cli import bench, check, export, info, predict, train
from gpubp.errors import GpubpError, SettingError

_UsageError: type[Any] = typer.BadParameter.__mro__[2]  # ClickException: Typer brings its own or Click's


class _Commands(TyperGroup):
    """All commands, with errors told in one line: exit code 2 for wrong options, 130 for Ctrl-C, else 1."""

    def main(self, *args: Any, **settings: Any) -> Any:
        with _errors_told():
            code = super().main(*args, **{**settings, "standalone_mode": False})
            print(end="", flush=True)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # before Typer turns it into something that depends on Typer's version
            raise typer.Abort from None


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        _stop(f"error: {error.format_message()}", error.exit_code)
    except SettingError as error:
        _stop(f"error: {error}", 2)
    except GpubpError as error:
        _stop(f"error: {error}", 1)
    except MemoryError as error:
        _stop(f"error: not enough memory. {error}", 1)
    except (typer.Abort, KeyboardInterrupt):
        _stop("stopped", 130)
    except OSError as error:
        _give_up_stuck_output()
        if error.errno == errno.EPIPE:  # whoever read the output has enough of it
            sys.exit(1)
        _stop(f"error: {error.filename or 'output'}: {error.strerror}", 1)


def _give_up_stuck_output() -> None:
    """Drop what standard output does not take, so that Python does not try, and complain, once more at its exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (train.train, predict.predict, export.export, check.check, bench.bench, info.info):
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gpubp {gpubp.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _overview(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Multilayer perceptrons with hand-written, batched backprop on the CPU or a CUDA device."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line on this process's arguments."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a class's name must not end a run on a plain terminal
    app(prog_name="gpubp")
