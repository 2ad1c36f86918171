"""Kind: the contract of what may be decided about a model. A new one is a subclass and its entry point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from ..choice import Candidate, Choice, Option

if TYPE_CHECKING:
    import torch

    from ...model.captured_module import CapturedModule
    from ...model.cost_tables import Tables
    from ...model.facts import Facts
    from ...model.operators.place import Substitution
    from ...model.operators.substitution import Planting
    from ...model.repair import Calibration
    from ...model.surgery import Alive, Mend
    from .splits.staged import PlacedStage

Taken = Sequence[tuple[Choice, int]]  # all choices of a kind, each with its option's index in one candidate
Many = Sequence[tuple[Choice, np.ndarray]]  # the same for n candidates, indices int64 [n]


@dataclass(frozen=True, slots=True)
class Making:
    """What all kinds of one space share.

    Attributes:
        order: gives the units of a coupled group by its name, the most important first, int64 [units].
        least: fewest units that may stay, by group; 1 where it is not there.
        calibration: moments of what the layers read; ``None`` without calibration data.
        batches: the calibration data, ``(args, kwargs)`` each.
        run: values of the placeholders on which the repair runs networks; ``None`` where it runs none.
    """

    order: Callable[[str], np.ndarray]
    least: Mapping[str, int]
    ratios: int | Sequence[float]
    round_to: int
    calibration: Calibration | None = None
    batches: Sequence[tuple[tuple[Any, ...], dict[str, Any]]] = ()
    progress: Callable[[int, int], None] | None = None  # for proofs
    run: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a kind may decide about a model, and what it must leave alone: name -> reason."""

    choices: Sequence[Choice]
    refusals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keeps:
    """A choice that decides how many units of a coupled group stay: the first ones of an order."""

    group: str
    units: Mapping[Option, int]  # by option
    order: np.ndarray  # [units] int64, the most important first


@dataclass(frozen=True, slots=True)
class Drops:
    """A choice that decides whether a residual block is there."""

    block: str
    options: frozenset[Option]  # with which it is not


@dataclass(eq=False)
class Context:
    """What kinds may know of one network that they change.

    Attributes:
        alive: [units + 1 + blocks] bool, which labels, then which blocks, stay.
        widths: [1, groups] int64, units that stay.
        dropped: [1, blocks] bool.
        calibration: moments of what the unchanged network's layers read; None without repair data.
        mend: how sliced parameters are repaired, whatever units they keep.
        sample: placeholders' values of one batch, where repair runs the network.
        planting: what stands for layers, as kinds have declared (:meth:`Kind.replaces`).
        marks: of calls that are to be grouped: the groups of their outputs and of their inputs.
        reads: ``get_attr`` nodes that edits have put on the graph; those that nothing uses go, with what they
            read.
        last: done after all kinds have edited the graph, in this order.
    """

    facts: Facts
    alive: Alive
    widths: np.ndarray
    dropped: np.ndarray
    planting: Planting
    calibration: Calibration | None = None
    mend: Mend | None = None
    sample: Sequence[Any] | None = None
    marks: dict[Any, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    reads: list[Any] = field(default_factory=list)
    last: list[Callable[[], None]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """One kind of choice with its options: all that a space needs to know about an idea.

    A subclass is a frozen dataclass: its fields are the options that ``Blueprint.space`` and the command line
    take for it, by name, with their defaults; names must differ from those of all other kinds.
    ``__post_init__`` refuses bad values (ValueError), before any work. What an option does is kept with each
    choice, in ``about``, by the option's value and not by its index: options of a choice may be left out.
    Instances, and what is in ``about``, must be picklable and hold no tensors of the model.

    The first option of every choice leaves the model as it is. Kinds answer in the order of their
    :attr:`turn`, those of one turn in the space's order.
    """

    done: ClassVar[str]  # past participle for the message "nothing in this model may be ..."
    neutral: ClassVar[bool] = False  # decides where a network runs, and nothing about what it computes
    rewrites: ClassVar[bool] = False  # networks of other options than the first are captured graphs, edited
    switches: ClassVar[bool] = False  # all it does is keep, replace and mend, so that no graph is edited
    measured: ClassVar[tuple[str, ...]] = ()  # costs that are not computed: the data decide
    turn: ClassVar[int] = 1

    def goes_with(self, kinds: Sequence[str]) -> None:  # noqa: B027
        """Asked before any work, whether it may be in a space of these kinds; by default it may.

        Raises:
            ValueError: it may not, and why.
        """

    @abstractmethod
    def find(self, facts: Facts, making: Making) -> Found:
        """The choices that this model has, each with this kind and what it is about; none where it has none.

        ``facts.groups`` are proven.
        """

    def recorded(self) -> dict[str, Any]:
        """The options as plain JSON, from which an equal kind can be made."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}

    # -- what stays ----------------------------------------------------------------------------------

    def keeps(self, choice: Choice) -> Sequence[Keeps | Drops]:
        """What the choice keeps of groups and blocks; costs, slicing and switching follow from it alone."""
        return ()

    def kept(self, choice: Choice) -> tuple[int, ...] | None:
        """By option, how many units stay; ``None`` where no single group is decided about. For reports."""
        found = [k for k in self.keeps(choice) if isinstance(k, Keeps)]
        return tuple(found[0].units[o] for o in choice.options) if len(found) == 1 else None

    # -- what stands in a layer's place ---------------------------------------------------------------

    def replaces(self, choice: Choice, index: int) -> Mapping[str, Substitution]:
        """Operators that stand for layers with an option, by node of the captured graph; by default none.

        Building and switching follow from it; costs do not.
        """
        return {}

    # -- costs, of n candidates ----------------------------------------------------------------------

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:  # noqa: B027
        """Correct analytic costs in place, or add some; what :meth:`keeps` tells is in them already.

        Args:
            costs: float64 [n] by metric (``macs``, ``flops``, ``params``, ``size_mb``, ``activation_mb``,
                ``memory_mb``, ...) as the kinds before have left them.
            tables: what each candidate keeps, [n] arrays as well.
        """

    def falling(self, choices: Sequence[Choice], names: Sequence[str]) -> Sequence[str]:
        """Those of the costs ``names`` that never rise when a choice goes to a later option; by default none.

        Searchers that prove bounds rely on it (see :meth:`ModelSide.cost_bounds`).
        """
        return ()

    # -- one network ---------------------------------------------------------------------------------

    def mend(
        self, taken: Taken, calibration: Calibration | None = None, planting: Planting | None = None
    ) -> Mend | None:
        """Changes sliced and repaired parameters in place; ``None`` where there is nothing to change.

        Args:
            calibration: moments of what the unchanged network's layers read.
            planting: what stands for layers; those substitutes may be changed too.
        """
        return None

    def edit(self, network: CapturedModule, taken: Taken, context: Context) -> None:  # noqa: B027
        """Change the pruned captured graph in place, once for all choices.

        Called where :attr:`rewrites` is true and a choice is not at its first option. Nodes have the names of
        the captured graph (``context.facts.surgeon.module.graph``); those of dropped blocks are not there.
        Parameters lie under their canonical names, already sliced and repaired; new ones are put on
        ``network`` (``register_parameter``, ``add_submodule``) and read by ``get_attr``. The caller
        afterwards removes what is not read any more, and recompiles; batch-norm and dropout calls with the
        train flag ``False`` are made to follow ``train()``.
        """

    def wrap(self, network: torch.nn.Module, taken: Taken, context: Context) -> torch.nn.Module:
        """A network that holds the finished one, called as it is; by default that itself.

        Where it needs data (heads to be fitted), it has a method ``refit(batches)`` with ``batches`` a
        sequence of ``(args, kwargs)``: ``Job`` calls that of the outermost module with the task's calibration
        batches, after batch norms were re-estimated.
        """
        return network

    def stages(self, network: torch.nn.Module, taken: Taken, context: Context) -> list[PlacedStage] | None:
        """The stages that a network in one piece is cut into; ``None`` from kinds that cut none."""
        return None

    def key(self, taken: Taken) -> bytes:
        """Equal keys, equal networks, given what :meth:`keeps` tells; empty where nothing else changes."""
        changed = [(c.name, c.options[i]) for c, i in taken if i]
        return repr(changed).encode() if changed else b""


@dataclass(frozen=True)
class Part:
    """The choices of one kind in a space, with their places there."""

    kind: Kind
    columns: tuple[int, ...]
    choices: tuple[Choice, ...]

    def of(self, candidate: Candidate) -> Taken:
        return [(c, candidate.indices[i]) for c, i in zip(self.choices, self.columns, strict=True)]

    def many(self, indices: np.ndarray) -> Many:
        """Of candidates given as option indices [n, choices]."""
        return [(c, indices[:, i]) for c, i in zip(self.choices, self.columns, strict=True)]

    def changes(self, candidate: Candidate) -> bool:
        """Is any choice not at its first option?"""
        return any(candidate.indices[i] for i in self.columns)


def parts_of(choices: Sequence[Choice]) -> tuple[Part, ...]:
    """The choices by the kind that answers for them, in the order of turns; without those that have none."""
    columns: dict[int, list[int]] = {}
    for i, choice in enumerate(choices):
        if choice.kind is not None:
            columns.setdefault(id(choice.kind), []).append(i)
    made = [
        Part(cast(Kind, choices[at[0]].kind), tuple(at), tuple(choices[i] for i in at))
        for at in columns.values()
    ]
    return tuple(sorted(made, key=lambda part: part.kind.turn))


def check_rising(name: str, numbers: Sequence[int]) -> None:
    """
    Raises:
        ValueError: not whole numbers from 2 that rise.
    """
    if list(numbers) != sorted(set(numbers)) or any(n < 2 or int(n) != n for n in numbers) or not numbers:
        raise ValueError(f"{name} are rising whole numbers from 2, got {list(numbers)}")


def plain(value: Any) -> Any:
    """JSON's types for tuples, and for objects with a method ``to_json``."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
