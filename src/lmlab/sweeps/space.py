"""The search space: parameters in Hydra's syntax, and the conditions under which they are varied."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Digits of a number drawn from an interval: enough to tell trials apart, few enough to read.
DIGITS = 5


@dataclass(frozen=True)
class Parameter:
    """One key that is varied: either over `values` (each with the text that Hydra takes) or from low to high.

    when: for each other key, the values at which this one is varied.
    """

    key: str
    values: tuple[Any, ...] = ()
    texts: tuple[str, ...] = ()
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether it has an order that a sampler can use."""
        return self.low is not None

    def text(self, value: Any) -> str:
        """As an override writes it."""
        for known, text in zip(self.values, self.texts, strict=True):
            if type(known) is type(value) and known == value:
                return text
        return str(value)

    def admits(self, override: str) -> bool:
        """Whether it gives this key one of the values, or a number within the bounds."""
        key, _, text = str(override).partition("=")
        if key != self.key or text in self.texts:
            return key == self.key
        try:
            return self.numeric and self.low <= float(text) <= self.high
        except ValueError:
            return False

    def distribution(self) -> "BaseDistribution":
        from optuna import distributions as d

        if not self.numeric:
            return d.CategoricalDistribution(self.values)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return d.IntDistribution(self.low, self.high, log=self.log, step=1 if self.log else self.step or 1)
        return d.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def rounded(self, value: Any) -> Any:
        """A drawn number with few digits, within the bounds; others as they are."""
        if not isinstance(value, float) or not self.numeric or self.step is not None:
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


def parse(space: Mapping[str, str], when: Mapping[str, Any], fixed: Mapping[str, str]) -> list[Parameter]:
    """The parameters, each after those that its conditions read.

    fixed: keys that every trial has with one value: a condition may read them too. A key with a condition may stand
    there as well, with its value where that does not hold. Raises ValueError.
    """
    parameters = {key: parameter(key, text) for key, text in space.items()}
    fixed = {key: text for key, text in fixed.items() if key not in parameters}
    for key in when:
        if key not in parameters:
            raise ValueError(f"when.{key}: {key} is not varied, so that it needs no condition")
    conditions = {key: _conditions(key, when[key], parameters, fixed) for key in when}
    kept: dict[str, Parameter] = {}
    for key, one in parameters.items():
        wanted = conditions.get(key, {})
        # What is fixed decides now.
        if all(_holds(_value(fixed[other]), values) for other, values in wanted.items() if other in fixed):
            rest = tuple((other, values) for other, values in wanted.items() if other not in fixed)
            kept[key] = replace(one, when=rest)
    while gone := [key for key, one in kept.items() if any(o in parameters and o not in kept for o, _ in one.when)]:
        for key in gone:
            del kept[key]
    return _ordered(kept)


def parameter(key: str, text: str) -> Parameter:
    """From Hydra's syntax: a,b or choice(a,b), range(1,9,2), interval(0,1), int(interval(1,8)), tag(log,...)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
        sweep = override.value()
        texts = tuple(override.sweep_string_iterator()) if isinstance(sweep, ChoiceSweep | RangeSweep) else ()
    except (HydraException, ValueError) as error:
        raise ValueError(
            f"{key}={text} is no space; write choice(a,b), range(1,9,2), interval(0,1) or tag(log,interval(1e-4,1e-1))"
        ) from error
    if not isinstance(sweep, ChoiceSweep | RangeSweep | IntervalSweep):
        raise ValueError(f"{key}={text} has one value; a space has several, as in {key}=choice(a,b)")
    log = "log" in sweep.tags
    if log and not isinstance(sweep, IntervalSweep):
        raise ValueError(
            f"{key}={text}: tag(log,...) is of intervals, tag(log,interval(1e-4,1e-1)) or tag(log,int(interval(1,9))); "
            "values that are listed are written without it"
        )
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if not low < high or (log and low <= 0):
            above = " and, with tag(log), above 0" if log else ""
            raise ValueError(f"{key}={text}: the lower end must be below the upper one{above}")
        return Parameter(key, low=low, high=high, log=log)
    values = tuple(map(_value, texts))
    if not values:
        raise ValueError(f"{key}={text} has no values")
    if len(set(texts)) < len(texts):
        raise ValueError(f"{key}={text} names a value twice")
    if isinstance(sweep, RangeSweep) and len(values) > 1:
        low, high = min(values), max(values)
        return Parameter(key, values, texts, low, high, abs(sweep.step))
    return Parameter(key, values, texts)


def _value(text: str) -> Any:
    """What a text means to Hydra, as far as it is a plain value; else the text itself."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString

    value = OverridesParser.create().parse_override(f"key={text}").value()
    value = value.text if isinstance(value, QuotedString) else value
    return value if isinstance(value, bool | int | float | str) or value is None else text


def _conditions(
    key: str, told: Any, parameters: Mapping[str, Parameter], fixed: Mapping[str, str]
) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for condition in [told] if isinstance(told, str) else list(told):
        other, equals, text = str(condition).partition("=")
        if not equals or not text:
            raise ValueError(f"when.{key}={condition} must be written other_key=value, or other_key=value1,value2")
        if other not in parameters and other not in fixed:
            raise ValueError(f"when.{key}={condition}: {other} is neither varied nor given to every trial")
        values = tuple(_value(part.strip()) for part in re.split(r",(?![^\[]*\])", text))
        one = parameters.get(other)
        for value in values if one is not None and one.values else ():
            if not _holds(value, one.values):
                raise ValueError(f"when.{key}={condition}: {other} never is {value}; it has {', '.join(one.texts)}")
        found[other] = values
    return found


def _holds(value: Any, wanted: Sequence[Any]) -> bool:
    return any(value == one or str(value) == str(one) for one in wanted)


def _ordered(parameters: dict[str, Parameter]) -> list[Parameter]:
    placed: dict[str, Parameter] = {}
    while len(placed) < len(parameters):
        # A condition on what is itself never varied leaves nothing to vary.
        ready = [p for p in parameters.values() if p.key not in placed and all(o in placed for o, _ in p.when)]
        if not ready:
            rest = [key for key in parameters if key not in placed]
            raise ValueError(f"when: {', '.join(rest)} wait for each other's values")
        placed[ready[0].key] = ready[0]
    return list(placed.values())


def active(one: Parameter, chosen: Mapping[str, Any]) -> bool:
    """Whether it is varied, given the values of the parameters before it."""
    return all(key in chosen and _holds(chosen[key], values) for key, values in one.when)


def grid(parameters: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    """Every combination, the last parameter fastest; what no condition admits is left out, not repeated."""
    for one in parameters:
        if not one.values:
            raise ValueError(
                f"strategy=grid needs values for {one.key}, which is an interval: write {one.key}=choice(...) or "
                "range(...), or take strategy=random, tpe, gp or cmaes"
            )
    return _combinations(list(parameters), {})


def _combinations(rest: list[Parameter], chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not rest:
        yield dict(chosen)
        return
    first, *others = rest
    for value in first.values if active(first, chosen) else ():
        yield from _combinations(others, chosen | {first.key: value})
    if not active(first, chosen):
        yield from _combinations(others, chosen)


def samples(parameters: Sequence[Parameter], last: bool = False) -> Iterator[dict[str, Any]]:
    """A few points in which, together, every parameter is varied: what can be refused before anything runs.

    last: of each parameter's values the last, not the first.
    """
    missing = [p.key for p in parameters]
    while missing:
        wanted: dict[str, Any] = {}
        _require(missing[0], {p.key: p for p in parameters}, wanted)
        point: dict[str, Any] = {}
        for one in parameters:
            if active(one, point):
                point[one.key] = wanted.get(one.key, _end(one, last))
        yield point
        before = len(missing)
        missing = [key for key in missing if key not in point]
        if len(missing) == before:
            raise ValueError(f"when.{missing[0]} can never hold")


def _end(one: Parameter, last: bool) -> Any:
    if one.values:
        return one.values[-1 if last else 0]
    return one.rounded(one.high if last else one.low)


def _require(key: str, parameters: Mapping[str, Parameter], wanted: dict[str, Any]) -> None:
    for other, values in parameters[key].when:
        one = parameters[other]
        known = [v for v in one.values if _holds(v, values)]
        wanted.setdefault(other, known[0] if known else values[0])
        _require(other, parameters, wanted)


def overrides(parameters: Sequence[Parameter], point: Mapping[str, Any]) -> list[str]:
    """The point as Hydra's overrides."""
    return [f"{one.key}={one.text(point[one.key])}" for one in parameters if one.key in point]
