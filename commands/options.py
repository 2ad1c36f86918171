"""Options of commands, made from the fields of a settings class; the meaning of those about devices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand

from ..engine.read_settings import SweepSettings, check_fields, default_of, near, option_of
from .arguments import names_in

if TYPE_CHECKING:
    from dataclasses import Field

    from ..devices import Device, Link
    from ..evaluators import Task
    from ..spaces import Blueprint


T = TypeVar("T")


class Panels(TyperCommand):
    """A command whose help shows its options in panels, in the order of their first options."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """``[OPTIONS] TASK``, also where a list stands for the argument (see :func:`settings_of`)."""
        arguments = [p.metavar for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return [self.options_metavar or "", *(str(name) for name in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                panels.setdefault("Arguments", []).append(
                    (parameter.metavar or "", str(getattr(parameter, "help", "") or ""))
                )
            else:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def flag_of(one: Field[Any]) -> str:
    """``"--round-to"``: a setting on the command line."""
    return option_of(one).flag or f"--{one.name.replace('_', '-')}"


def with_options(table: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each field of ``table`` that has an :class:`Option`.

    The command takes them as ``**given``, by field, None where an option is not given. They come before its
    own keyword-only parameters.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        held = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        first = [p for p in held if p.kind is not p.KEYWORD_ONLY]
        made = [*first, *_parameters(table), *held[len(first) :]]
        command.__signature__ = own.replace(parameters=made)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in made}
        return command

    return decorate


def _parameters(table: type) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(table)
    for one in fields(table):
        if "option" not in one.metadata:
            continue
        option, hint = option_of(one), hints[one.name]
        taken: Any = next((t for t in (bool, int, float, str) if hint in (t, t | None)), list[str])
        if option.commas:
            taken = str
        flag = flag_of(one)
        if hint is bool and one.default is True:
            flag = f"{flag}/--no-{flag[2:]}"
        default = default_of(one)
        info = typer.Option(
            flag,
            metavar=option.metavar,
            help=option.help + (f" [default: {default}]" if default else ""),
            rich_help_panel=option.panel,
            show_default=False,
        )
        yield inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[taken | None, info]
        )


def options_of(table: type[T], given: Mapping[str, Any]) -> T:
    """The options of a command as an instance of its table, defaults where they are not given.

    Raises:
        ValueError: a value that is too small.
    """
    lists = {one.name for one in fields(table) if one.metadata and option_of(one).commas}  # type: ignore[arg-type]
    asked = {name: value for name, value in given.items() if value is not None}
    made = table(**{name: names_in(value) if name in lists else value for name, value in asked.items()})
    check_fields(made)
    return made


def settings_of(words: Sequence[str], given: Mapping[str, Any]) -> SweepSettings:
    """The settings that a command line asks for: those of its recipe, where it names one, under its options.

    Args:
        words: TASK, or a recipe file, and the options that are not of the table: those of kinds of choices.
        given: by field; None where the option is not given.

    Raises:
        typer.BadParameter: no TASK or two, an option that is not known.
        ValueError: a recipe that cannot be read, or a value that no sweep can have.
    """
    first, others = task_and_options(words)
    held: dict[str, Any] = {"task": first}
    if first.endswith(".toml"):
        held = SweepSettings.read(first).to_dict()
    if held.get("task") is None:
        raise ValueError(f'the recipe {first} names no task; add a line such as task = "digits"')
    asked = {name: value for name, value in given.items() if value is not None}
    for one in fields(SweepSettings):
        if one.name in asked and option_of(one).commas:
            asked[one.name] = _numbers(asked[one.name]) if one.name == "ratios" else names_in(asked[one.name])
    if {"trials", "minutes"} & set(asked):  # they take the place of both
        held = {k: v for k, v in held.items() if k not in ("trials", "minutes")}
    if {"devices", "platform"} & set(asked):  # they take the place of those of the recipe, links and all
        held = {k: v for k, v in held.items() if k not in ("devices", "links", "platform")}
    options = {**held.get("options", {}), **kind_options(others)}
    return SweepSettings.from_dict({**held, **asked, "options": options})


def task_and_options(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The TASK, and the options that a command does not have itself: ``--sparsities 0,0.5``, by name.

    Raises:
        typer.BadParameter: no TASK or two, an option without a value.
    """
    tasks: list[str] = []
    others: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            tasks.append(word)
            continue
        name, equals, value = word.partition("=")
        value = value if equals else next(rest, "")
        if not name.startswith("--") or not value:
            raise NoSuchOption(name)
        others[name] = value
    if len(tasks) != 1:
        raise typer.BadParameter(
            "Missing argument 'TASK'" if not tasks else f"one TASK, got {' '.join(tasks)}"
        )
    return tasks[0], others


class NoSuchOption(typer.BadParameter):
    """An option of the command line that there is not."""

    def __init__(self, flag: str) -> None:
        from ..spaces.kinds import known_kinds

        known = [flag_of(one) for one in fields(SweepSettings) if "option" in one.metadata]
        known += [f"--{name.replace('_', '-')}" for kind in known_kinds() for name in kind_fields(kind)]
        super().__init__(f"No such option: {flag}{near(flag, [*known, '--json'])}")

    def format_message(self) -> str:
        return self.message


def kind_options(texts: Mapping[str, str]) -> dict[str, Any]:
    """Options of kinds of choices, by field, from the command line, of the types of the fields.

    Raises:
        typer.BadParameter: an option that no kind has, or text that is no such value.
    """
    if not texts:
        return {}
    from ..spaces.kinds import known_kinds, read_options

    known = {name for kind in known_kinds() for name in kind_fields(kind)}
    for flag in texts:
        if flag[2:].replace("-", "_") not in known:
            raise NoSuchOption(flag)
    try:
        return read_options(known_kinds(), {flag[2:]: text for flag, text in texts.items()})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def check_kind_options(kinds: Sequence[str], options: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: an option that none of these kinds has, a value that its kind refuses, or kinds that do
            not go together.
    """
    from ..spaces.kinds import known_kinds, make_kinds

    taken = {name: kind for kind in known_kinds() for name in kind_fields(kind)}
    for name in options:
        if not any(name in kind_fields(kind) for kind in kinds):
            of = (
                f" is of the kind {taken[name]!r}, which --space does not name"
                if name in taken
                else " is unknown"
            )
            take = f"{', '.join(kinds)} take {_all_fields(kinds)}" if kinds else "give --space KINDS"
            raise ValueError(f"the option {name!r}{of}; {take}")
    make_kinds(kinds, options)


def kind_fields(kind: str) -> list[str]:
    """Names of the options that a kind of choices has of its own."""
    from ..spaces.kinds import kind_class

    return [one.name for one in fields(kind_class(kind))]


def _all_fields(kinds: Sequence[str]) -> str:
    return ", ".join(name for kind in kinds for name in kind_fields(kind)) or "none of their own"


def _numbers(text: str) -> Any:
    """``"8"``: so many, evenly spaced; ``"0,0.25,0.5"``: these.

    Raises:
        typer.BadParameter: neither.
    """
    try:
        return int(text) if "," not in text else [float(part) for part in names_in(text)]
    except ValueError:
        raise typer.BadParameter(
            "--ratios is a number of ratios, such as 8, or a list that starts with 0 and rises to less than "
            f"1, such as 0,0.25,0.5; got {text!r}"
        ) from None


# -- Devices and links on the command line, for spaces that split networks ------------------------------

PLACEMENTS = ("ordered", "free")
ONE_BY_ONE = ("greedy-merge", "greedy-split")  # searchers that merge and split stages at single places


@dataclass(frozen=True)
class Platform:
    """What was asked for on the command line; empty where nothing was."""

    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    placement: str | None = None
    parts: int | None = None
    forced: tuple[str, ...] = ()  # modules after which a stage ends
    forbidden: tuple[str, ...] = ()  # modules that stay whole

    def options(
        self,
        task: Task,
        blueprint: Blueprint,
        searcher: str,
        *,
        wanted: Collection[str] = (),
        stored: Sequence[Device] = (),
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """The options of the kind ``splits``. Measures this machine where a device's speed refers to it.

        Args:
            wanted: metrics that are objectives or limited.
            stored: of a run that is resumed.
        """
        from ..engine.platform import as_stored
        from ..evaluators.profiling import with_profiles

        devices, links = (self.devices, self.links) if self.devices else (task.devices, task.links)
        options: dict[str, Any] = {}
        if devices:
            devices = with_profiles(as_stored(devices, stored), task, blueprint, say=say)
            options = {"devices": devices, "links": links}
        if self.placement is not None:
            options["placement"] = self.placement
        if self.parts is not None:
            options["parts"] = self.parts
        options |= {k: v for k in ("forced", "forbidden") if (v := getattr(self, k))}
        if {"latency_change", "throughput_change"} & set(wanted):
            options["sensitivity"] = True
        if searcher in ONE_BY_ONE:
            options["encoding"] = "each"
        return options


def platform_of(asked: SweepSettings) -> Platform:
    """What the settings of devices mean, checked before any work.

    Raises:
        ValueError: devices or links that cannot be.
        typer.BadParameter: options that do not go together.
    """
    from ..devices import devices_of, links_of, read_platform

    given = {
        "--device": asked.devices,
        "--link": asked.links,
        "--devices": asked.platform,
        "--placement": asked.placement,
        "--parts": asked.parts,
        "--force": asked.forced,
        "--forbid": asked.forbidden,
    }
    named = [name for name, value in given.items() if value]
    if named and "splits" not in asked.space:
        raise typer.BadParameter(
            f"{named[0]} is for networks that are split; add splits to --space: "
            f"--space {','.join([*asked.space, 'splits'])}"
        )
    placement, searcher = asked.placement, asked.searcher
    if placement is not None and placement not in PLACEMENTS:
        raise typer.BadParameter(f"--placement is {' or '.join(PLACEMENTS)}, got {placement!r}")
    if searcher in ONE_BY_ONE and (placement or asked.parts):
        raise typer.BadParameter(
            f"{searcher} puts any number of stages on the devices in turn; leave out "
            f"{'--placement' if placement else '--parts'}, and give --limit 'stages<=3', say"
        )
    if asked.platform is not None and (asked.devices or asked.links):
        raise typer.BadParameter("give --devices FILE, or --device and --link, not both")
    if asked.links and not asked.devices:
        raise typer.BadParameter("--link needs devices that it joins: --device edge=0.2x --device server=1x")
    devices, links = read_platform(asked.platform) if asked.platform is not None else ((), ())
    if asked.devices:
        try:
            devices = devices_of(asked.devices)
            links = links_of(asked.links, devices)
        except TypeError as error:  # a table with a key that is not of a device or link
            raise ValueError(f"devices and links of the recipe: {error}") from None
    return Platform(devices, links, placement, asked.parts, asked.forced, asked.forbidden)
