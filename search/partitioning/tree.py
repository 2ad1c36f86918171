"""A decision tree of the loss: which choices matter, as rules that a person can read and a search can use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...spaces import Candidate, Choice

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeRegressor

FOLDS = 5  # of the cross-validation
TRUST = 0.2  # least held-out R^2 of a tree that may prune


@dataclass(frozen=True, slots=True)
class Rule:
    """One leaf: what a candidate must have chosen to fall into it, and what the trials there lost."""

    options: tuple[
        tuple[Choice, range], ...
    ]  # choices that the rule asks about, and the option indices allowed
    loss: float  # mean of the trials
    trials: int
    metric: str = "loss"

    def holds(self, candidate: Candidate) -> bool:
        chosen = {
            choice.name: index for choice, index in zip(candidate.choices, candidate.indices, strict=True)
        }
        return all(chosen[choice.name] in allowed for choice, allowed in self.options)

    def __str__(self) -> str:
        conditions = []
        for choice, allowed in self.options:
            conditions.append(f"{choice.name} {_condition(choice, allowed)}")
        count = f"{self.trials} trial{'s' if self.trials > 1 else ''}"
        return f"{self.metric} {self.loss:.4g} ({count}) where {' and '.join(conditions) or 'anything'}"


def _condition(choice: Choice, allowed: range) -> str:
    """``"= 0.5"``, ``"<= 0.5"``, ``">= 0.5"`` or ``"in (a, b)"``."""
    options, taken = choice.options, [choice.options[i] for i in allowed]
    if len(taken) == 1:
        return f"= {taken[0]}"
    numbers = [o for o in options if isinstance(o, int | float) and not isinstance(o, bool)]
    if numbers == list(options) and sorted(numbers) in (numbers, numbers[::-1]):
        values = sorted(numbers[i] for i in allowed)
        if values[0] == min(numbers):
            return f"<= {values[-1]}"
        return f">= {values[0]}" if values[-1] == max(numbers) else f"in {values[0]} .. {values[-1]}"
    return f"in ({', '.join(map(str, taken))})"


@dataclass(frozen=True)
class LossTree:
    """What a regression tree says of the loss. Made by :func:`loss_tree`."""

    importances: dict[str, float]  # of each choice, its share of the variance explained, the largest first
    rules: tuple[Rule, ...]  # the leaves, least loss first; every candidate falls into exactly one
    trust: float  # R^2 on trials left out (cross-validation), at most 1; about 0 or less: says nothing

    def __str__(self) -> str:
        """The rules as text, one a line."""
        return "\n".join(str(rule) for rule in self.rules)

    def predict(self, candidate: Candidate) -> float:
        """Mean loss of the rule that the candidate falls into."""
        return next(rule.loss for rule in self.rules if rule.holds(candidate))

    def prune(self, candidates: Iterable[Candidate], *, worst: float) -> list[Candidate]:
        """The candidates whose rule does not predict a loss above ``worst``, in their order.

        A tree that does not predict trials left out (``trust`` below 0.2) prunes nothing. What is pruned may
        still be good: the tree is a surrogate, no bound.
        """
        if self.trust < TRUST:
            return list(candidates)
        return [candidate for candidate in candidates if self.predict(candidate) <= worst]


def loss_tree(
    candidates: Sequence[Candidate],
    losses: Sequence[float] | np.ndarray,
    *,
    depth: int = 4,
    least: int = 5,
    seed: int = 0,
    metric: str = "loss",
) -> LossTree:
    """Fit a regression tree (CART: Breiman et al., 1984) from option indices to the loss.

    Options are ordered from "unchanged" to "most compressed", so that a split asks how far a choice goes.

    Args:
        candidates: of trials, all of one space.
        losses: [trials], to minimise; those not finite (failed trials) are left out.
        depth: conditions of a rule at most.
        least: trials of a rule at least.
        seed: of the folds and of ties.
        metric: what the losses are called in the rules' text.

    Raises:
        ValueError: candidates of two spaces, or fewer than ``max(2 * least, 5)`` finite losses.
    """
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.tree import DecisionTreeRegressor

    values = np.asarray(losses, dtype=np.float64)
    if len(values) != len(candidates):
        raise ValueError(
            f"every candidate needs a loss: got {len(candidates)} candidates, {len(values)} losses"
        )
    finite = np.isfinite(values)
    needed = max(2 * least, FOLDS)
    if finite.sum() < needed:
        raise ValueError(
            f"a tree of rules needs at least {needed} trials with a finite loss, got {finite.sum()}; run "
            "more trials first, or lower `least`"
        )
    choices = candidates[0].choices
    if any(candidate.choices != choices for candidate in candidates):
        raise ValueError("the candidates come from different spaces; give trials of one run")
    rows = np.array([candidate.indices for candidate in candidates], dtype=np.float64)[finite]
    values = values[finite]
    tree = DecisionTreeRegressor(
        max_depth=depth,
        min_samples_leaf=least,
        min_impurity_decrease=1e-9 * float(values.var()),  # no rules that tell rounding errors apart
        random_state=seed,
    )
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    error = float(((cross_val_predict(tree, rows, values, cv=folds) - values) ** 2).sum())
    variation = float(((values - values.mean()) ** 2).sum())
    tree.fit(rows, values)
    shares = tree.feature_importances_
    order = np.argsort(-shares, kind="stable")
    return LossTree(
        importances={choices[d].name: float(shares[d]) for d in order},
        rules=tuple(sorted(_rules(tree, choices, metric), key=lambda rule: rule.loss)),
        trust=1 - error / variation if variation > 0 else 0.0,
    )


def _rules(tree: DecisionTreeRegressor, choices: tuple[Choice, ...], metric: str) -> list[Rule]:
    """The leaves of a fitted tree, each with the options that lead to it."""
    inner = tree.tree_
    rules = []
    open_nodes = [(0, tuple(range(len(choice)) for choice in choices))]
    while open_nodes:
        node, allowed = open_nodes.pop()
        d = int(inner.feature[node])
        if d < 0:
            asked = [(c, r) for c, r in zip(choices, allowed, strict=True) if len(r) < len(c)]
            loss = float(inner.value[node].item())
            rules.append(Rule(tuple(asked), loss, int(inner.n_node_samples[node]), metric))
            continue
        cut = int(np.floor(inner.threshold[node])) + 1  # the first option of the right side
        for child, side in (
            (inner.children_left[node], range(allowed[d].start, min(cut, allowed[d].stop))),
            (inner.children_right[node], range(max(cut, allowed[d].start), allowed[d].stop)),
        ):
            open_nodes.append((int(child), (*allowed[:d], side, *allowed[d + 1 :])))
    return rules
