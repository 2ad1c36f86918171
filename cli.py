"""The command line: reads arguments, calls the library, shows what came of it.

A command is imported when it runs or is asked for its help, and everything heavy is imported inside
commands, so that ``--help`` is instant. Results go to stdout, progress and errors to stderr; ``__main__``
turns errors into exit codes.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Entry(NamedTuple):
    """A command as the list of commands shows it: where it is, and the beginning of its docstring."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "sweep": Entry("sweep", "sweep", "Search the Pareto front of a task."),
    "inspect": Entry("models", "inspect", "Show what may be changed in a model, and what its layers cost."),
    "partition": Entry("models", "partition", "Cut a model into stages for several devices."),
    "profile": Entry("models", "profile", "Measure how long a task's operators take on this machine."),
    "list": Entry("runs", "list_runs", "List the runs in a folder."),
    "front": Entry("runs", "front", "Show the Pareto front of a run."),
    "show": Entry("runs", "show", "Show what was cut where in one trial."),
    "report": Entry("runs", "report", "Write one interactive page about one or several runs."),
    "explain": Entry("runs", "explain", "Explain one trial's subnetwork against the original."),
    "export": Entry("files", "export", "Export one trial's subnetwork."),
    "verify": Entry("files", "verify", "Check an export again, here."),
    "serve": Entry("serve", "serve", "Run the stages of one trial as processes."),
    "compare": Entry("runs", "compare", "Compare the fronts of several runs under one reference."),
    "salvage": Entry("files", "salvage", "Save what is intact in a damaged run to a new one."),
}


def load(name: str) -> TyperCommand:
    """The command of this name, imported.

    Raises:
        KeyError: there is no such command.
    """
    from .commands.options import Panels

    entry = COMMANDS[name]
    alone = typer.Typer(rich_markup_mode=None, add_completion=False)
    # Options of kinds of choices, which may be of other packages, are not known until they are asked for.
    known = {"ignore_unknown_options": True} if name in ("sweep", "inspect") else {}
    function = getattr(import_module(f".commands.{entry.module}", __package__), entry.function)
    alone.command(name, cls=Panels, context_settings=known)(function)
    made = typer.main.get_command(alone)
    assert isinstance(made, TyperCommand)
    return made


class Loading(MutableMapping[str, Any]):
    """Commands by name, each imported when it is looked up first; the names are known without."""

    def __init__(self) -> None:
        self._loaded: dict[str, TyperCommand | None] = dict.fromkeys(COMMANDS)

    def __getitem__(self, name: str) -> TyperCommand:
        if (loaded := self._loaded[name]) is None:
            loaded = self._loaded[name] = load(name)
        return loaded

    def __setitem__(self, name: str, command: TyperCommand) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)


class Commands(TyperGroup):
    """The group of all commands, whose list needs none of them imported."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Loading()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


app = typer.Typer(
    cls=Commands,
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
