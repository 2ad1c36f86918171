"""The command line: reads arguments, calls the library, shows what came of it.

Everything heavy is imported inside the commands, so that ``--help`` is instant. Results go to stdout,
progress and errors to stderr; ``__main__`` turns errors into exit codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from .commands.files import export, salvage, verify
from .commands.models import inspect, profile
from .commands.options import Panels
from .commands.partition import partition
from .commands.runs import compare, explain, front, list_runs, report, show
from .commands.serve import serve
from .commands.sweep import sweep

COMMANDS: dict[str, Callable[..., None]] = {
    "sweep": sweep,
    "inspect": inspect,
    "partition": partition,
    "profile": profile,
    "list": list_runs,
    "front": front,
    "show": show,
    "report": report,
    "explain": explain,
    "export": export,
    "verify": verify,
    "serve": serve,
    "compare": compare,
    "salvage": salvage,
}

app = typer.Typer(
    help="Search what a trained network can become. `netcarve sweep digits` shows netcarve at work.",
    rich_markup_mode=None,  # plain help: importing rich would take longer than all else
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"netcarve {version('netcarve')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


for name, command in COMMANDS.items():
    # Options of kinds of choices, which may be of other packages, are not known until they are asked for.
    known = {"ignore_unknown_options": True} if name == "sweep" else {}
    app.command(name, cls=Panels, context_settings=known)(command)
