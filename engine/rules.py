"""Rules of a decision tree: which choices of a run matter for the loss, to read and to narrow a space by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..results.trial import in_full
from ..spaces import Candidate, Choice, Space

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeRegressor

    from .run import Run


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


# -- Which choices of a run matter for the loss: rules of a decision tree, to read and to narrow a space by

SHOWN = 0.02  # least share of the variation for which a choice is named


def run_tree(run: Run, *, depth: int = 3, least: int = 5, seed: int = 0) -> LossTree:
    """The tree of a run's trials.

    Of their ``loss``; where the task has none, of what they lack of the first objective to maximise against
    the unchanged model.

    Raises:
        ValueError: too few trials that did not fail, or none with a loss.
    """
    done = [trial for trial in in_full(run.trials) if not trial.failed]
    metric = "loss"
    if not any("loss" in trial.scores for trial in done):
        known = [o.name for o in run.objectives if o.goal == "max"]
        if not known:
            raise ValueError(f"the trials of {run.path} have no loss and no objective to maximise: no tree")
        metric = f"lost {known[0]}"
    name = metric.removeprefix("lost ")
    kept = [trial for trial in done if name in trial.scores]
    values = [float(trial.scores[name]) for trial in kept]
    if metric != "loss":
        best = float(run.baseline.scores[name]) if run.baseline else max(values, default=0.0)
        values = [best - value for value in values]
    candidates = [trial.candidate for trial in kept]
    return loss_tree(candidates, values, depth=depth, least=least, seed=seed, metric=metric)


def run_rules(run: Run, *, depth: int = 3) -> list[str]:
    """A few lines on which choices decide the loss of a run's trials; none where there are too few trials."""
    try:
        tree = run_tree(run, depth=depth)
    except ValueError:
        return []
    metric, trials = tree.rules[0].metric, sum(rule.trials for rule in tree.rules)
    if tree.trust < TRUST:
        return [f"no simple rule tells the {metric} of these {trials} trials (R2 {max(tree.trust, 0.0):.2f})"]
    named = [f"{name} {100 * share:.0f} %" for name, share in tree.importances.items() if share >= SHOWN]
    return [
        f"what decides the {metric} ({trials} trials, R2 {tree.trust:.2f} on trials left out): "
        + ", ".join(named),
        *(str(rule) for rule in tree.rules),
    ]


def narrowed(space: Space, tree: LossTree, *, worst: float) -> Space:
    """The space without the options that every rule up to a loss of ``worst`` excludes.

    The unchanged option of every choice stays. A tree that does not predict trials left out narrows nothing;
    what is left out may still be good, for the tree is no bound. The result is not made again by a run's
    settings: give it to :func:`load`.

    Raises:
        ValueError: the tree is of another space.
    """
    if set(tree.importances) != {choice.name for choice in space.choices}:
        raise ValueError("the tree was fitted on trials of another space; fit it on a run of this one")
    kept = [rule for rule in tree.rules if rule.loss <= worst]
    good = [{choice.name: allowed for choice, allowed in rule.options} for rule in kept]
    if tree.trust < TRUST or not good:
        return space
    choices = []
    for choice in space.choices:
        every = range(len(choice))
        left = {0}.union(*(rule.get(choice.name, every) for rule in good))
        choices.append(replace(choice, options=tuple(choice.options[i] for i in sorted(left))))
    return Space(choices, model=space.model)
