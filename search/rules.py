"""Which choices of a run matter for the loss: rules of a decision tree, to read and to narrow a space by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..results.trial import in_full
from ..spaces import Space
from .partitioning.tree import TRUST, LossTree, loss_tree

if TYPE_CHECKING:
    from .run import Run

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
