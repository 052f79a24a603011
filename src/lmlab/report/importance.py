"""How much of the variance each parameter explains: fANOVA (Hutter et al. 2014), by optuna and scikit-learn."""

import math
import warnings
from typing import Any

from lmlab.report.parameters import Parameter

# Fewer treatments than this say nothing about several parameters.
LEAST = 8
# Of what is fitted: a treatment that diverged must not be all that is explained.
WORST = 10.0


def importance(varied: list[Parameter], groups: list[dict[str, Any]], sign: int) -> dict[str, Any]:
    """{'values': [[name, share], ...], 'together', 'note': why some or all are missing}.

    A share is what a parameter explains by itself; together: the rest of 1, which takes several of them to explain.
    """
    if len(groups) < LEAST:
        return {"values": [], "note": f"Weighed from {LEAST} different configurations on; here are {len(groups)}."}
    if len({g["mean"] for g in groups}) == 1:
        return {"values": [], "note": "All configurations are equally good."}
    places, lacking, single = [], [], []
    for i in range(len(varied)):
        values = {g["values"][i] for g in groups}
        (lacking if None in values else single if len(values) == 1 else places).append(i)
    notes = [
        f"Not weighed, as {why}: {', '.join(varied[i].name for i in left)}."
        for left, why in (
            (lacking, "some runs do not have them"),
            (single, "all that came to a result have one value of them"),
        )
        if left
    ]
    note = " ".join(notes)
    if not places:
        return {"values": [], "note": note or "Nothing varies."}
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return {
            "values": [],
            "note": "fANOVA needs scikit-learn: pip install 'lmlab[sweeps]', and make the report anew.",
        }
    from optuna.importance import FanovaImportanceEvaluator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = FanovaImportanceEvaluator(seed=0).evaluate(study([varied[i] for i in places], places, groups, sign))
    together = max(0.0, 1 - float(sum(found.values())))
    return {"values": [[name, float(share)] for name, share in found.items()], "together": together, "note": note}


def study(varied: list[Parameter], places: list[int], groups: list[dict[str, Any]], sign: int) -> Any:
    """The treatments as an optuna study in memory."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        made = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(before)
    # On the scale of the search: optuna's fANOVA weighs a range of a logarithmic parameter by its length.
    columns = {
        p.name: [math.log10(g["values"][i]) if p.log else g["values"][i] for g in groups]
        for p, i in zip(varied, places, strict=True)
    }
    kinds = {
        p.name: FloatDistribution(min(columns[p.name]), max(columns[p.name]))
        if p.number
        else CategoricalDistribution(sorted(set(columns[p.name])))
        for p in varied
    }
    scores = [sign * g["mean"] for g in groups]
    best, middle = min(scores), sorted(scores)[len(scores) // 2]
    ceiling = middle + WORST * (middle - best) if middle > best else math.inf
    for n, score in enumerate(scores):
        params = {name: column[n] for name, column in columns.items()}
        made.add_trial(optuna.create_trial(params=params, distributions=kinds, value=min(score, ceiling)))
    return made
