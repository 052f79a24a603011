"""Which point comes next: from a list, or from one of Optuna's samplers told what the finished points gave."""

import importlib.util
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lmlab.runs.protocols import is_measured
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.ledger import Ledger, results_of
from lmlab.sweeps.objective import REPORTED
from lmlab.sweeps.pruning import RUNGED
from lmlab.sweeps.space import Parameter, active

if TYPE_CHECKING:
    import optuna

# What each needs beyond Optuna itself.
LIBRARIES = {"gp": "scipy", "cmaes": "cmaes"}
# Those that draw the next point by what the finished ones gave.
GUIDED = ("tpe", "gp", "cmaes")
# Of Optuna's samplers, those that leave out pruned trials.
FINISHED_ONLY = ("gp", "cmaes")


def check(strategy: str, rule: str) -> None:
    """Raises ImportError that names the extra, ValueError for a rule of pruning that leaves nothing to learn from."""
    if strategy in FINISHED_ONLY and rule in RUNGED:
        raise ValueError(
            f"strategy={strategy} learns from finished trials alone, and under pruning.rule={rule} all points are drawn"
            " before those that it stopped go on: they would be random; take strategy=tpe, which reads rungs, too"
        )
    library = LIBRARIES.get(strategy)
    if library and importlib.util.find_spec(library) is None:
        raise ImportError(f"strategy={strategy} needs {library}; install it with: pip install 'lmlab[sweeps]'")


def check_space(strategy: str, parameters: Sequence[Parameter]) -> None:
    """Raises ValueError for what CMA-ES or a GP cannot model: Optuna would draw it at random and say nothing."""
    conditional = [one.key for one in parameters if one.when]
    if strategy == "gp" and conditional:
        raise ValueError(
            f"strategy=gp models what every point has: {', '.join(conditional)} depends on another key; take tpe or "
            "random"
        )
    if strategy != "cmaes":
        return
    words = [one.key for one in parameters if not one.numeric and len(one.values) > 1]
    told = [f"{', '.join(words)} has choices (of numbers, too)"] if words else []
    told += [f"{', '.join(conditional)} depends on another key"] if conditional else []
    if told:
        raise ValueError(
            f"strategy=cmaes draws numbers that every point has: {'; '.join(told)}; write interval(...) or range(...), "
            "or take tpe, gp or random"
        )


def comparing(strategy: str, rule: str) -> list[str]:
    """What compares trials while a sweep runs, whatever protocol their numbers are of."""
    return [f"strategy={strategy}"] * (strategy in GUIDED) + [f"pruning.rule={rule}"] * (rule != "none")


def check_protocols(
    strategy: str, rule: str, objective: Sequence[Mapping[str, str]], space: Iterable[str], points: Iterable[list[str]]
) -> None:
    """Raises ValueError where the space itself has trials drawn or stopped by numbers of several protocols.

    space: the keys that are varied. points: of strategy=list, each with its overrides.
    """
    choosing = comparing(strategy, rule)
    metrics = [one["metric"] for one in objective if is_measured(one["metric"])]
    listed = [tuple(one for one in point if _of_evaluation(one.partition("=")[0])) for point in points]
    words = [one.partition("=")[0] for point in listed for one in point] if len(set(listed)) > 1 else []
    varied = dict.fromkeys([*filter(_of_evaluation, space), *words])
    if choosing and metrics and varied:
        raise ValueError(
            f"{' and '.join(choosing)} would compare {metrics[0]} across protocols, for {', '.join(varied)} is varied: "
            "give it one value, or keep protocols apart with strategy=grid, list or random and pruning.rule=none"
        )


def _of_evaluation(key: str) -> bool:
    return key.lstrip("+~").partition(".")[0] == "evaluation"


def propose(asked: Asked, ledger: Ledger, rung: int | None = None) -> int | None:
    """Write the next point into the ledger; its number, or None where there are no more.

    Within one transaction: a point is a function of its number, strategy_seed and what had finished by then, and is
    written down before it runs, so that a sweep that is killed and continued has no others. rung: pruning's first.
    """
    with ledger.transaction():
        number = ledger.n_points()
        if number >= asked.n_points:
            return None
        if asked.strategy == "list":
            return ledger.add_point({}, asked.points[number], {}, asked.seeds, rung)
        if asked.strategy == "grid":
            point: dict[str, Any] = asked.listed[number]
            attrs: dict[str, Any] = {}
        else:
            point, attrs = draw(asked, history(asked, ledger), number)
        return ledger.add_point(point, asked.overrides_of(point), attrs, asked.seeds, rung)


def draw(asked: Asked, trials: Sequence["optuna.trial.FrozenTrial"], number: int) -> tuple[dict[str, Any], dict]:
    """The point that the sampler proposes after these trials, and what it wants to remember of it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=[one["direction"] for one in asked.objective],
            sampler=sampler(asked.strategy, asked.strategy_seed * 1_000_003 + number),
        )
        study.add_trials(trials)
        trial = study.ask()
        point: dict[str, Any] = {}
        for one in asked.parameters:
            if active(one, point):
                point[one.key] = one.rounded(suggest(trial, one))
    kept = study.trials[-1].system_attrs
    return point, dict(kept)


def sampler(strategy: str, seed: int) -> "optuna.samplers.BaseSampler":
    """A fresh one: what it knows comes from the trials."""
    from optuna import samplers

    seed %= 2**32
    if strategy == "random":
        return samplers.RandomSampler(seed=seed)
    if strategy == "tpe":
        return samplers.TPESampler(seed=seed, multivariate=True, group=True)
    if strategy == "gp":
        return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    from lmlab.sweeps.cmaes import NumbersOnly

    return NumbersOnly(seed=seed, warn_independent_sampling=False)


def suggest(trial: "optuna.Trial", one: Parameter) -> Any:
    kind = one.distribution()
    name = type(kind).__name__
    if name == "CategoricalDistribution":
        return trial.suggest_categorical(one.key, kind.choices)
    if name == "IntDistribution":
        return trial.suggest_int(one.key, kind.low, kind.high, step=kind.step, log=kind.log)
    return trial.suggest_float(one.key, kind.low, kind.high, step=kind.step, log=kind.log)


def history(asked: Asked, ledger: Ledger) -> list["optuna.trial.FrozenTrial"]:
    """Every point so far as Optuna's trial: means over replicates, what was reported, and how it stands."""
    parameters = {p.key: p for p in asked.parameters}
    trials = ledger.by_point()
    reports = ledger.reports()
    return [frozen(asked, parameters, row, trials[row["number"]], reports) for row in ledger.points()]


def frozen(
    asked: Asked,
    parameters: Mapping[str, Parameter],
    point: Any,
    trials: Sequence[Any],
    reports: Mapping[int, Mapping[int, float]],
) -> "optuna.trial.FrozenTrial":
    import optuna

    state = standing(trials)
    values = means(asked, trials) if state == "done" else None
    params = json.loads(point["params"])
    state = {"done": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}.get(state, "RUNNING")
    told = [reports.get(row["id"], {}) for row in trials]
    steps = set.intersection(*map(set, told)) if told else set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_trial(
            state=optuna.trial.TrialState[state],
            params=params,
            distributions={key: parameters[key].distribution() for key in params},
            values=values,
            intermediate_values={step: fmean(one[step] for one in told) for step in sorted(steps)},
            system_attrs=json.loads(point["attrs"]),
            user_attrs={"overrides": json.loads(point["overrides"]), "runs": [row["run_dir"] for row in trials]},
        )


def standing(trials: Sequence[Any]) -> str:
    """Of a point, from its replicates: done, pruned and failed once none of them goes on."""
    found = {row["status"] for row in trials}
    if found & {"waiting", "running"}:
        return "running"
    return "failed" if "failed" in found else "pruned" if "pruned" in found else "done"


def means(asked: Asked, trials: Sequence[Any]) -> list[float]:
    """Each objective's mean over the replicates."""
    told = [results_of(row) for row in trials]
    return [fmean(numbers[one["metric"]] for numbers in told) for one in asked.objective]


def reported(asked: Asked) -> str | None:
    """The metric of validations that pruning compares; None where the objective is none of them."""
    return REPORTED.get(asked.objective[0]["metric"]) if len(asked.objective) == 1 else None
