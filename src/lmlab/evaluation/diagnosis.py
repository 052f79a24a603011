"""Is it trained well enough? What a run's own curve says, and what to try next. Pure functions of points and facts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from lmlab.evaluation.curve import Curve, Facts
from lmlab.evaluation.extrapolation import Forecast, more_training
from lmlab.evaluation.remedies import Remedy, remedies, with_measured_text, with_tested_rate

# Shares of the loss. Less than two hundredths for twice the training are a level curve.
IMPROVES = 0.02
# The held-out loss has risen, and not by the noise of a validation.
ROSE = 0.01
# Held-out loss above that of the train slice, beyond what they differed by at the first validation.
GAP = 0.1
# Times the first loss, from which a run did not come back to knowing frequencies.
EXPLODED = 2.0
# Times what guessing costs, or the first loss: more than an untrained model's own noise.
WORSE = 1.05
# Letter or word frequencies are the first thing learnt: a share of training that is too long for it, and the nearness
# to the unigram floor that counts as no more than that.
SLOW, LEVEL = 0.25, 0.03
# A share of all steps at that level, and still there in the end: the rate does not let the model settle.
STUCK = 0.5
# Norm of a step's change over that of a matrix. In grids of LSTMs and Transformers under Adam, AdamW and Muon for 200
# steps the best rates had at most 0.035; from 0.048 on a tenth of the rate was better by a twentieth and more.
MOVES = 0.042
# Of runs that were stuck at frequencies those up to 0.0085 learnt at a higher rate, those from 0.013 on at a lower one.
TIMID = 0.01
# A rise between two logged losses while even frequencies are unknown, as a share: more than a window's noise.
OVERSHOOT = 0.05
# What the held-out loss rises by on its way to its best, as a share of what it falls by: in the same grids at most 0.05
# at the best rates, and from 0.13 on where it shook.
SHAKES = 0.1
# Above its median by so many times its usual deviation, a training loss is a spike.
SPIKE = 8.0
# Bits of text that a parameter can hold by heart: Morris et al. 2025. Epochs that are nearly as good as new text:
# Muennighoff et al. 2023. Tokens a parameter at which compute is spent best: Hoffmann et al. 2022.
BITS_HELD, EPOCHS_FREE, TOKENS_BEST = 3.6, 4.0, 20.0
# Remedies that are shown.
MOST = 3
KINDS = (
    "diverged", "rate too high", "rate too low", "over-fitting", "under-regularised", "starved", "unstable",
    "improving", "converged",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that is so. kind: of KINDS. since: the step from which on, where there is one."""

    kind: str
    told: str
    since: int | None = None


@dataclass(frozen=True)
class Diagnosis:
    """findings: the first is the verdict. candidates: all that could be tried, the best first. figures: lines.

    curve, facts: what it was made from. distances: lines about the recipe's published numbers, where it has some.
    """

    findings: list[Finding]
    candidates: list[Remedy]
    figures: list[str]
    curve: Curve
    facts: Facts
    distances: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return self.findings[0].kind

    @property
    def remedies(self) -> list[Remedy]:
        return self.candidates[:MOST]

    def with_more_text(self, tokens: Sequence[int], losses: Sequence[float]) -> "Diagnosis":
        """With what runs on parts of the text say, in place of a bound."""
        gain, low, high = more_text(tokens, losses)
        told = ", ".join(f"{n:,} tokens {loss:.3f}" for n, loss in sorted(zip(tokens, losses, strict=True)))
        line = f"on parts of the text: {told}; twice the text would bring {gain:.3f} nats ({low:.3f} to {high:.3f})"
        candidates = with_measured_text(self.candidates, low, high, len(tokens), self.facts)
        return replace(self, candidates=candidates, figures=[*self.figures, line])

    def with_range_test(self, tested: Mapping[str, Any]) -> "Diagnosis":
        """With the rate that `lmlab.training.range_test` suggests, in place of a tenth or ten times of the run's."""
        kinds = {finding.kind for finding in self.findings}
        return replace(self, candidates=with_tested_rate(self.candidates, tested, kinds, self.curve, self.facts))

    def card(self) -> list[str]:
        """A few lines for the end of a training."""
        told = [f"{finding.kind}: {finding.told}" for finding in self.findings]
        lines = [f"diagnosis: {told[0]}", *(f"  also {other}" for other in told[1:])]
        lines += [f"  {distance}" for distance in self.distances]
        return lines + [f"  try {remedy.overrides}: {remedy.expected()}" for remedy in self.remedies]

    def as_dict(self) -> dict[str, Any]:
        findings, tried = ([asdict(one) for one in some] for some in (self.findings, self.remedies))
        told = {"figures": self.figures, "distances": self.distances}
        return {"verdict": self.verdict, "findings": findings, "remedies": tried, **told}


def diagnose(points: Sequence[Mapping[str, Any]], facts: Facts) -> Diagnosis:
    """All that holds, most urgent first, and what follows from it."""
    curve = Curve.of(points)
    findings, ahead = judge(curve, facts)
    candidates = remedies({finding.kind for finding in findings}, curve, facts, ahead)
    return Diagnosis(findings, candidates, figures(curve, facts, ahead), curve, facts)


def judge(curve: Curve, facts: Facts) -> tuple[list[Finding], Forecast | None]:
    """The findings, and what twice the training would bring, where that can be told."""
    if (broken := diverged(curve, facts)) is not None:
        return [broken], None
    if not len(curve.val):
        return [Finding("improving", "it was never validated: too short to tell")], None
    ahead = more_training(curve, 2.0)
    found = [rate_too_high(curve, facts), rate_too_low(curve, facts), over_fitting(curve)]
    found += [under_regularised(curve), starved(facts), unstable(curve)]
    findings = [finding for finding in found if finding is not None]
    if not {f.kind for f in findings} & {"rate too high", "over-fitting"}:
        findings.append(improving(curve, facts, ahead) or converged(curve, ahead))
    return findings, ahead


def diverged(curve: Curve, facts: Facts) -> Finding | None:
    values = np.concatenate([curve.loss, curve.val])
    if facts.failure is not None or not np.isfinite(values).all():
        at = int(curve.steps[-1]) if len(curve.steps) else 0
        return Finding("diverged", f"training ended in a loss that is no number, after step {at}", at)
    if len(curve.loss) < 3:
        return held_out_exploded(curve, facts)
    # What it ends with is worse than what it began with, or than knowing frequencies alone, on its own train text. The
    # middle of the last three is no end where the curve still falls: the last is.
    falling = curve.loss[-1] < curve.loss[:-1].min()
    end = float(curve.loss[-1] if falling else np.median(curve.loss[-3:]))
    first = facts.first_loss if facts.first_loss is not None else float(curve.loss[0])
    limit = min(first, math.log(facts.vocab_size))
    if (known := facts.frequencies) is not None:
        limit = min(limit, known + 0.25 * (math.log(facts.vocab_size) - known))
    best = float(curve.loss.min())
    exploded = float(curve.loss.max()) > EXPLODED * first
    if end > limit and (end > best * 1.05 or end > first or exploded):
        since = int(curve.steps[int(curve.loss.argmin())])
        return Finding("diverged", f"the training loss ends at {end:.3f}, and was {best:.3f} at step {since}", since)
    return None


def held_out_exploded(curve: Curve, facts: Facts) -> Finding | None:
    """Of a run with hardly a training loss: its last validation is worse than guessing, and so is its slice of train,
    which over-fitting would know by heart."""
    if not len(curve.val):
        return None
    guessing = math.log(facts.vocab_size)
    limit, end, gap = max(guessing, facts.first_loss or 0.0), float(curve.val[-1]) - facts.charge, curve.gap[-1]
    # Without that slice only what no over-fitting reaches counts.
    if end < limit * (EXPLODED if np.isnan(gap) else WORSE) or curve.val[-1] - gap < limit * WORSE:
        return None
    told = f"the held-out loss ends at {curve.val[-1]:.4g}, and guessing costs {guessing:.3f}"
    return Finding("diverged", told, int(curve.val_steps[-1]))


def unstable(curve: Curve) -> Finding | None:
    """Spikes: a loss far above the points around it, which comes back."""
    if len(curve.loss) < 8:
        return None
    skip = max(2, len(curve.loss) // 10)
    loss, steps = curve.loss[skip:], curve.steps[skip:]
    # Above what was before and above what follows: a steep fall is no spike.
    before = np.array([np.median(loss[max(0, i - 3) : i]) if i else np.inf for i in range(len(loss))])
    after = np.array([np.median(loss[i + 1 : i + 4]) if i + 1 < len(loss) else np.inf for i in range(len(loss))])
    off = loss - np.maximum(before, after)
    usual = max(float(np.median(np.abs(np.diff(loss)))) * 1.4826, 0.003 * float(np.median(loss)))
    spikes = steps[off > SPIKE * usual]
    if not len(spikes):
        return None
    at = ", ".join(str(int(s)) for s in spikes[:3])
    return Finding("unstable", f"{len(spikes)} spikes of the training loss (steps {at})", int(spikes[0]))


def _at_level(curve: Curve, facts: Facts) -> np.ndarray | None:
    """Where the training loss is no better than frequencies alone: (n,) bool."""
    return None if facts.frequencies is None else curve.loss > facts.frequencies * (1 - LEVEL)


def rate_too_high(curve: Curve, facts: Facts) -> Finding | None:
    """A step moves some matrix too far; or the loss rose before anything was learnt, or rises again and again; or it
    stays at frequencies."""
    told = moves_too_far(curve, facts) or overshoots(curve, facts) or shakes(curve)
    told = told or settles_nowhere(curve, facts)
    return None if told is None else Finding("rate too high", told)


def moved(curve: Curve, facts: Facts) -> float | None:
    """By what share of its size a step changes some matrix, where the rate is high and small weights have grown.

    None under SGD, which at its best rates moves some by a tenth.
    """
    held = (curve.lr >= curve.lr.max(initial=0) / 2) & (curve.steps > curve.steps[-1:] / 8)
    shares = curve.update[held & ~np.isnan(curve.update)]
    return float(np.median(shares)) if facts.normalised and len(shares) >= 4 else None


def moves_too_far(curve: Curve, facts: Facts) -> str | None:
    share = moved(curve, facts)
    if share is None or share < MOVES:
        return None
    return f"a step changes some matrix by {share:.1%} of its size (at most {MOVES:.1%} have learnt well)"


def overshoots(curve: Curve, facts: Facts) -> str | None:
    """The first updates made it worse: at a rate that fits the loss falls until frequencies are known."""
    if facts.frequencies is None or len(curve.loss) < 8:
        return None
    known = np.flatnonzero(curve.loss < facts.frequencies * (1 + 2 * LEVEL))
    early = curve.loss[: known[0] + 1] if len(known) else curve.loss
    rises = np.flatnonzero(np.diff(early) > OVERSHOOT * early[:-1])
    if not len(rises):
        return None
    first = rises[0]
    return (
        f"before it knew frequencies the training loss rose from {early[first]:.2f} to {early[first + 1]:.2f} "
        f"(step {int(curve.steps[first + 1])})"
    )


def shakes(curve: Curve) -> str | None:
    """The held-out loss, which is always of the same text, rises and falls on its way to its best."""
    way = curve.val[: int(curve.val.argmin()) + 1]
    rises = np.maximum(np.diff(way), 0)
    least = max(SHAKES * (way[0] - way[-1]), ROSE * way[-1])
    if len(way) < 5 or (rises > 0).sum() < 2 or rises.sum() < least:
        return None
    return f"the held-out loss rose {int((rises > 0).sum())} times on its way down, by {rises.sum():.3f} nats in all"


def stuck(curve: Curve, facts: Facts) -> float | None:
    """It learnt frequencies at once, and in the end nothing more: for which share of training."""
    level, known = _at_level(curve, facts), facts.frequencies
    if level is None or len(level) < 8:
        return None
    reached = np.flatnonzero(curve.loss < known * (1 + 2 * LEVEL))
    if not len(reached) or curve.steps[reached[0]] > SLOW * curve.steps[-1]:
        return None
    share = float(level[reached[0] :].mean())
    return share if share >= STUCK and curve.val.min() - facts.charge > known * (1 - LEVEL / 3) else None


def settles_nowhere(curve: Curve, facts: Facts) -> str | None:
    """Stuck, and not for steps that are too short."""
    share, by = stuck(curve, facts), moved(curve, facts)
    if share is None or (by is not None and by < TIMID):
        return None
    return f"for {share:.0%} of training, and in the end, it knew no more than frequencies do"


def rate_too_low(curve: Curve, facts: Facts) -> Finding | None:
    """Frequencies alone took a large part of the training, and the loss came down steadily; or it is stuck at them,
    with steps too short to leave."""
    known = facts.frequencies
    if known is None or len(curve.loss) < 8:
        return None
    by = moved(curve, facts)
    if stuck(curve, facts) is not None and by is not None and by < TIMID:
        return Finding(
            "rate too low", f"it knew no more than frequencies; a step changes no matrix by more than {by:.2%}"
        )
    start = max(float(curve.loss[0]), known)
    near = known + 0.15 * (start - known)
    reached = np.flatnonzero(curve.loss <= near)
    at = curve.steps[reached[0]] if len(reached) else curve.steps[-1]
    if len(reached) and at <= SLOW * curve.steps[-1]:
        return None
    if (np.diff(curve.loss) > 0).mean() > 0.3:
        return None
    took = f"{at / curve.steps[-1]:.0%} of training" if len(reached) else "more than the whole training"
    return Finding("rate too low", f"learning frequencies alone took {took}")


def over_fitting(curve: Curve) -> Finding | None:
    best = int(curve.val.argmin())
    rise = float(curve.val[-1] / curve.val[best] - 1)
    # A single worse validation is noise; the train slice must have gone on falling.
    if best >= len(curve.val) - 2 or rise < ROSE or not (curve.gap[-1] > curve.gap[best] or np.isnan(curve.gap[-1])):
        return None
    since = int(curve.val_steps[best])
    return Finding(
        "over-fitting", f"the held-out loss rose by {rise:.1%} since step {since}, while train's fell", since
    )


def under_regularised(curve: Curve) -> Finding | None:
    gap = curve.excess_gap
    if gap is None or gap < GAP * float(curve.val.min()):
        return None
    return Finding("under-regularised", f"where held-out text was best, train's loss was {gap:.3f} nats lower")


def starved(facts: Facts) -> Finding | None:
    bits = facts.bits_per_parameter
    if bits is None or bits > BITS_HELD or facts.epochs < EPOCHS_FREE:
        return None
    told = f"{facts.epochs:.0f} epochs of a text with {bits:.2g} bits and {facts.tokens_per_parameter:.2g} tokens a "
    return Finding("starved", f"{told}parameter: it can be learnt by heart ({BITS_HELD} bits a parameter)")


def improving(curve: Curve, facts: Facts, ahead: Forecast | None) -> Finding | None:
    if ahead is None:
        told = "fewer validations than a forecast needs; the last was the best"
        if len(curve.val) and facts.best_step not in (None, int(curve.val_steps[-1])):
            # Of training that was interrupted between two validations the curve forgets that in passing.
            told += f" of its curve (best.ckpt is of step {facts.best_step})"
        return Finding("improving", told) if curve.val.argmin() == len(curve.val) - 1 else None
    if ahead.gain < IMPROVES * curve.val[-1]:
        return None
    told = f"twice the training: {ahead.final:.3f} nats ({ahead.lowest:.3f} to {ahead.highest:.3f})"
    # The last validation may have been a lucky one; the forecast goes on from where the curve is.
    fitted = ahead.final + ahead.gain
    return Finding("improving", f"{told}, now {curve.val[-1]:.3f} (by the fitted curve {fitted:.3f})")


def converged(curve: Curve, ahead: Forecast | None) -> Finding:
    more = "" if ahead is None else f"; twice the training would bring {ahead.gain:.3f} nats"
    return Finding("converged", f"the held-out loss is level at {curve.val.min():.3f}{more}")


def more_text(tokens: Sequence[int], losses: Sequence[float]) -> tuple[float, float, float]:
    """What twice the text would bring, from runs on parts of it: (expected, low, high), nats a token.

    tokens: (n,) of train; losses: (n,) on val. Between neighbours the gain of a doubling is measured; the next gain is
    the last one times the ratio by which gains have shrunk, at least nothing and at most the last.
    """
    order = np.argsort(tokens)
    size, loss = np.log2(np.array(tokens, float)[order]), np.array(losses, float)[order]
    if len(size) < 2 or (np.diff(size) <= 0).any():
        raise ValueError("fractions=... needs runs of different train_share")
    gains = -np.diff(loss) / np.diff(size)
    last = max(0.0, float(gains[-1]))
    shrunk = [float(np.clip(b / a, 0, 1)) for a, b in pairwise(gains) if a > 0]
    return last * (float(np.median(shrunk)) if shrunk else 1.0), last * min(shrunk, default=0.0), last


def figures(curve: Curve, facts: Facts, ahead: Forecast | None) -> list[str]:
    """What was measured, for whoever wants to judge for himself."""
    lines = []
    if len(curve.val):
        best = int(curve.val.argmin())
        gap = curve.excess_gap
        lines.append(
            f"held-out loss {curve.val[best]:.4f} at step {int(curve.val_steps[best]):,}"
            + ("" if gap is None else f", gap to train's {curve.gap[best]:+.3f}, of it {gap:+.3f} since the start")
        )
        floors = {"unigram": facts.unigram, "5-gram": facts.ngram}
        told = [f"{name} {floor:.3f} ({curve.val[best] - floor:+.3f})" for name, floor in floors.items() if floor]
        lines += [f"floors: {', '.join(told)}"] if told else []
    bits = facts.bits_per_parameter
    lines.append(
        f"{facts.tokens_per_parameter:.3g} tokens a parameter (compute is spent best at {TOKENS_BEST:.0f})"
        + ("" if bits is None else f", {bits:.3g} bits")
        + f", {facts.epochs:.3g} epochs"
    )
    if ahead is not None:
        lines.append(f"twice the training: {ahead.gain:+.4f} nats less ({ahead.low:.4f} to {ahead.high:.4f})")
    return lines
