"""The number that a recipe must reach: what it is of, how it was measured, what it costs, how far a run is from it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmlab.evaluation.protocol import Protocol

# Of a likelihood, all of them better when lower; and the places after the point that are shown.
PLACES = {"nll": 4, "ppl": 2, "bpb": 4}
SPLITS = ("val", "test")
# Where lengths are random, another seed takes a few steps less for the same epochs.
ALMOST = 0.99


@dataclass(frozen=True)
class Figure:
    """The number of one split.

    tokens: over how many it is; a run that scores another number of them has other text or another tokenizer.
    evaluation: keys of the evaluation node in which its protocol is not the recipe's own. under: the name of that
    protocol, by which a run knows whether it was measured so; "" where nobody says.
    """

    value: float
    tokens: int
    evaluation: Mapping[str, Any] = field(default_factory=dict, hash=False)
    under: str = ""


@dataclass(frozen=True)
class Published:
    """What a recipe's `published` node says.

    metric: of PLACES. tolerance: how much worse still counts as reached, in the metric's unit. protocol: how the number
    was measured, and where we must differ, in words. steps: of the whole recipe. cost: its time on named hardware.
    ours: nobody else has published it; it was measured with lmlab.
    """

    source: str
    metric: str
    tolerance: float
    splits: Mapping[str, Figure] = field(hash=False)
    protocol: str
    steps: int
    cost: str
    ours: bool = False

    @property
    def word(self) -> str:
        return "own" if self.ours else "published"

    def show(self, value: float, sign: bool = False) -> str:
        value = round(value, PLACES[self.metric]) + 0.0  # no minus before a nought
        return f"{value:{'+' if sign else ''},.{PLACES[self.metric]}f}"

    def verdict(self, split: str, value: float) -> str:
        """`within tolerance`, `better` than that, or `missed`."""
        # As it is shown, so that nothing is missed by a rounding that nobody sees.
        over = round(value - self.splits[split].value, PLACES[self.metric])
        if abs(over) <= self.tolerance:
            return "within tolerance"
        return "better" if over < 0 else "missed"

    def why_partial(self, training: Mapping[str, Any], budgets: Mapping[str, Sequence] | None = None) -> str | None:
        """Why a run is but a part of the recipe; None where it is the whole, which early stopping may end sooner.

        training: of its results.json. budgets: those that are not the recipe's, each with [the recipe's, its own]; None
        where that is not known: its steps tell.
        """
        why, steps = training["stopped_because"], training["steps"]
        if why == "counted":
            return None
        if why not in ("budget", "early stopping"):
            return f"stopped by {why}"
        if budgets is None:
            short = why == "budget" and steps < ALMOST * self.steps
            return f"{steps:,} of {self.steps:,} steps" if short else None
        # A limit in time that did not stop it changed nothing.
        told = [f"{k}={now} (the recipe: {was})" for k, (was, now) in budgets.items() if k != "trainer.max_time"]
        return ", ".join(told) or None

    def distances(
        self, measured: Mapping[str, Mapping[str, Any]], protocol: "Protocol", training: Mapping[str, Any]
    ) -> list[str]:
        """A line for each split that a run has measured under its own protocol. training: of its results.json."""
        told = []
        for split, figure in self.splits.items():
            if split not in measured:
                continue
            number = f"{self.word} {split} {self.metric} {self.show(figure.value)} ({self.source})"
            if measured[split]["tokens"] != figure.tokens:
                of = f"it is over {figure.tokens:,} tokens, here are {measured[split]['tokens']:,}"
                told.append(f"{number}: no distance, {of}")
                continue
            value = measured[split][self.metric]
            verdict = self.verdict(split, value)
            if self.why_partial(training):
                verdict = f"not whole, {training['steps']:,} of {self.steps:,} steps"
            more = "" if figure.under == protocol.name else "; under another protocol, lmlab reproduce takes its own"
            if not figure.under:
                more = f"; under {protocol.name}, and the number's own protocol is not stated"
            told.append(f"{number}: {self.show(value)}, {self.show(value - figure.value, sign=True)}: {verdict}{more}")
        return told

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(node: Any) -> Published | None:
    """A recipe's `published` node; None where it has no number. Raises ValueError with key, value and remedy."""
    if node is None:
        return None
    if not isinstance(node, Mapping):
        raise ValueError(f"published={node} must be null, or a node as in conf/experiment")
    told = _checked(Published, node, "published")
    if told["metric"] not in PLACES:
        raise ValueError(f"published.metric={told['metric']} must be one of {', '.join(PLACES)}")
    if not isinstance(told["splits"], Mapping) or not told["splits"] or set(told["splits"]) - set(SPLITS):
        raise ValueError(f"published.splits={told['splits']} must hold {' or '.join(SPLITS)}")
    stated = [(split, told["splits"][split]) for split in SPLITS if split in told["splits"]]
    figures = {split: Figure(**_checked(Figure, node, f"published.splits.{split}")) for split, node in stated}
    return Published(**told | {"splits": figures})


def _checked(kind: type, node: Any, where: str) -> dict[str, Any]:
    """The node's values by name: all that the class needs, and of the types that it states."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{where}={node} must be a mapping")
    known = {f.name: f for f in fields(kind)}
    for key in node:
        if key not in known:
            raise ValueError(f"no key {where}.{key}; there are {', '.join(known)}")
    optional = {"evaluation", "under", "ours"}
    for name, told in known.items():
        if name not in node:
            if name in optional:
                continue
            raise ValueError(f"{where}.{name}=... is needed")
        wanted = {float: (int, float), int: int, str: str, bool: bool}.get(told.type, Mapping)
        if not isinstance(node[name], wanted) or (isinstance(node[name], bool) and wanted is not bool):
            raise ValueError(f"{where}.{name}={node[name]} must be {_kind(told.type)}")
    return dict(node)


def _kind(annotation: Any) -> str:
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false"}.get(annotation, "a mapping")
