"""Stored runs measured again: as they are, adapted, mixed with another; what `lmlab evaluate` and `compare` do."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from lmlab.config import lengthened, numbering, short_name, treatment, with_read
from lmlab.data.cache import file_hash
from lmlab.evaluation import scores as kept_scores
from lmlab.evaluation import spelling
from lmlab.evaluation.adaptation import Adaptation, adapt
from lmlab.evaluation.adaptation import check as check_adaptation
from lmlab.evaluation.comparison import Side, check, compare
from lmlab.evaluation.evaluate import evaluate, score_batch
from lmlab.evaluation.mixture import best_weight, interpolate
from lmlab.evaluation.protocol import ROWS, Protocol, at_once, batches, check_lanes, unknown
from lmlab.evaluation.scores import Keeper, Scores
from lmlab.metrics import Likelihood
from lmlab.models import kernels
from lmlab.tokenizers import content_hash
from lmlab.training.checkpoints import require
from lmlab.training.plan import train_part

if TYPE_CHECKING:
    from lmlab.runs import Run

log = logging.getLogger("lmlab")

# Places after the point to which a tuned weight is rounded before it is used, so that the record is exact.
ROUNDED = 4
# Settings that a side's name holds; of more it holds those that tell it from the others.
NAMED = 4
# Rows side by side in which training text is read for the size of its gradients.
LANES = 16


class Measured(NamedTuple):
    """A split measured under a protocol: its sums, and each token. parts: the same of what a mixture is made of."""

    protocol: Protocol
    likelihood: Likelihood
    scores: Scores
    parts: Mapping[str, Likelihood]


class Place(NamedTuple):
    """Which text, and how work is grouped. corpus: a node, or None for the run's own text."""

    split: str
    corpus: Mapping[str, Any] | None
    batch_size: int | None


def measure(
    run: "Run", place: Place, protocol: Protocol, wanted: Mapping[str, Any], mix: "tuple[Run, Protocol] | None"
) -> Measured:
    """The run on a split, with all that `wanted` (keys of conf/evaluate.yaml) asks for.

    mix: another run over the same tokens, and the protocol that it reads them under.
    """
    check_adaptation(wanted, protocol)
    if mix is not None:
        _check_weight(wanted["mix_weight"])
    asked = wanted["scores"] or "frequency" in (wanted["by"] or ())
    counts = partial(train_counts, run) if asked else None
    plain = scored(run, place, protocol, counts=counts)
    size = place.batch_size or run.batch_size or ROWS
    rows = partial(_tuning_rows, run, protocol, place)
    with kernels.using(run.kernels):
        adapted = adapt(wanted, run.model, protocol, rows, run.device, size) if _asks(wanted) else None
    found, parts = plain, {}
    if adapted is not None:
        found = scored(run, place, protocol, adapted, counts=counts)
        parts["as trained"] = plain.likelihood
    if mix is not None:
        found = _mixed(run, place, found, adapted, *mix, wanted)
        parts |= found.parts
    return found._replace(parts=parts)


def _asks(wanted: Mapping[str, Any]) -> bool:
    told = (wanted["temperature"], wanted["cache"]["size"], wanted["dynamic"]["lr"], wanted["mc_dropout"]["samples"])
    return any(value is not None for value in told)


def _tuning_rows(run: "Run", protocol: Protocol, place: Place, split: str, tokens: int, width: int | None) -> Iterable:
    """Of the run's own text: the first tokens of val, or the last of train, LANES side by side."""
    part = run.part(split, None, protocol)
    how = replace(protocol, limit_tokens=None)
    size, more = place.batch_size or run.batch_size, {"at_once": at_once(run.model, run.device)}
    if split == "train":
        # All lanes in each batch, whatever was asked for: the mean gradient of fewer rows is a larger one.
        part, how, size = part.tail(tokens), replace(how, lanes=LANES), LANES
    more |= {} if width is None else {"chunk": width}
    return batches(part, how, run.tokenizer.start_id, size, limit_tokens=tokens, **more)


def scored(
    run: "Run",
    place: Place,
    protocol: Protocol,
    adapted: Adaptation | None = None,
    limit_tokens: int | None = None,
    counts: Callable[[], np.ndarray] | None = None,
) -> Measured:
    """Each token of a split. Where the run keeps the scores of just this, they are read, but with kernels=plain.

    limit_tokens: the first so many, to tune on, whatever the protocol's own limit. counts: gives those of the train
    split, where they are needed: a run measures other text without its own.
    """
    recorded = protocol if adapted is None else replace(protocol, options={**protocol.options, **adapted.options})
    if limit_tokens is not None:
        protocol = replace(protocol, limit_tokens=limit_tokens)
    about = identity(run, place, recorded)
    may_be_read = limit_tokens is None and run.kernels == "auto"
    if may_be_read and (found := stored(run, place, about)) is not None:
        # Scores that were kept before do not say.
        texts = run.config["decided"].get("texts", {}) if place.corpus is None else {}
        told = {"split_text": found.about.get("split_text") or texts.get(place.split)}
        told |= {"lossy_steps": list(run.tokenizer.lossy_steps)}
        found = replace(found, about={**found.about, **told})
        return Measured(recorded, found.likelihood(), found, {})
    part = run.part(place.split, place.corpus, protocol)
    # Before all the work, that it is not in vain where that text is gone.
    known = counts() if counts else None
    size = place.batch_size or run.batch_size
    if adapted is None or adapted.samples is None:
        keeper, likelihood = _pass(run, part, protocol, size, adapted)
    else:
        keeper, likelihood = _averaged(partial(_pass, run, part, protocol, size or ROWS), adapted), None
    about |= {"unknown": unknown(part, run.tokenizer.unk_id, protocol)}
    about |= {"lossy_steps": list(run.tokenizer.lossy_steps), "split_text": part.text}
    scores = keeper.scores(known, about)
    return Measured(recorded, likelihood or scores.likelihood(), scores, {})


def train_counts(run: "Run") -> np.ndarray:
    """How often each token occurs in what the run was trained on, (V,)."""
    part = train_part(run.store(), run.config.get("train_share", 1.0))
    return np.bincount(part.ids, minlength=run.tokenizer.vocab_size)


def _pass(
    run: "Run", part: Any, protocol: Protocol, batch_size: int | None, adapted: Adaptation | None, dropout: bool = False
) -> tuple[Keeper, Likelihood]:
    keeper, fastest = Keeper(part, protocol), at_once(run.model, run.device)
    rows = batches(part, protocol, run.tokenizer.start_id, batch_size, at_once=fastest)
    how = {"score": score_batch if adapted is None else adapted.score, "keep": keeper, "dropout": dropout}
    applied = nullcontext() if adapted is None else adapted.applied(run.model)
    with kernels.using(run.kernels), applied:
        return keeper, evaluate(run.model, rows, protocol.precision, run.device, **how)


def _averaged(read: Any, adapted: Adaptation) -> Keeper:
    """The mean of each token's probability over networks thinned by dropout (Gal and Ghahramani 2016)."""
    keeper, total = None, None
    with torch.random.fork_rng():
        for sample in range(adapted.samples):
            torch.manual_seed(adapted.seed + sample)
            keeper, _ = read(adapted, dropout=True)
            nats = keeper.nats.astype(np.float64)
            if sample == 1 and np.array_equal(nats, -total):
                raise ValueError(f"mc_dropout.samples={adapted.samples}: this model has no dropout to average over")
            total = -nats if total is None else np.logaddexp(total, -nats)
    keeper.nats[:] = np.log(adapted.samples) - total
    return keeper


def _check_weight(weight: float | str) -> None:
    if weight != "auto" and (isinstance(weight, str) or not 0 <= weight <= 1):
        raise ValueError(f"mix_weight={weight} must be from 0 to 1, or auto")


def _mixed(
    run: "Run",
    place: Place,
    ours: Measured,
    adapted: Adaptation | None,
    other: "Run",
    other_protocol: Protocol,
    wanted: Mapping[str, Any],
) -> Measured:
    weight = wanted["mix_weight"]
    theirs = scored(other, place, other_protocol)
    if not np.array_equal(ours.scores.ids, theirs.scores.ids):
        raise ValueError(f"mix={other.path} reads other tokens than {run.path}: both need one tokenizer and one text")
    told: dict[str, Any] = {"run": other.path.name, "weights": weights_hash(other), "protocol": other_protocol.name}
    if weight == "auto":
        tokens, plain = wanted["tune_tokens"], replace(ours.protocol, options={})
        weight = _tuned_weight(run, plain, adapted, other, other_protocol, place.batch_size, tokens)
        told["tuned_on"] = f"val:{tokens}"
    told["weight"] = float(weight)
    nats = interpolate(ours.scores.nats, theirs.scores.nats, float(weight))
    protocol = replace(ours.protocol, options={**ours.protocol.options, "mix": told})
    about = {**ours.scores.about, "protocol": protocol.as_dict()}
    scores = replace(ours.scores, nats=nats.astype(np.float32), about=about)
    # Trials of two sweeps may have one name.
    names = [each.path.name if run.path.name != other.path.name else str(each.path) for each in (run, other)]
    parts = dict(zip(names, (ours.likelihood, theirs.likelihood), strict=True))
    return Measured(protocol, scores.likelihood(), scores, parts)


def _tuned_weight(
    run: "Run",
    protocol: Protocol,
    adapted: Adaptation | None,
    other: "Run",
    other_protocol: Protocol,
    batch_size: int | None,
    tokens: int,
) -> float:
    """The best on the first tokens of the run's val, which the other reads too, whatever it was trained on."""
    own, trained_on = (each.config["decided"]["fingerprint"] for each in (run, other))
    val, remedy = Place("val", None, batch_size), "give mix_weight=, from 0 to 1"
    same_val = val if trained_on == own else val._replace(corpus=run.config["corpus"])
    try:
        ours = scored(run, val, protocol, adapted, tokens).scores
        theirs = scored(other, same_val, other_protocol, None, tokens).scores
    except FileNotFoundError as error:
        raise ValueError(f"mix_weight=auto is the best on the val of {run.path}: {error}; or {remedy}") from error
    if not np.array_equal(ours.ids, theirs.ids):
        raise ValueError(
            f"mix={other.path} reads other tokens than {run.path} on its val, where mix_weight=auto is found: {remedy}"
        )
    return round(best_weight(ours.nats, theirs.nats), ROUNDED)


# What is kept on disk


def scores_path(run: "Run", split: str) -> Path:
    return run.path / ("scores.parquet" if split == "test" else f"scores.{split}.parquet")


def identity(run: "Run", place: Place, protocol: Protocol) -> dict[str, Any]:
    """Which weights were measured on which text, and how: what scores are asked for by."""
    fingerprint = run.config["decided"]["fingerprint"]
    return {
        "run": run.path.name,
        "protocol": protocol.as_dict(),
        "split": place.split,
        "text": fingerprint if place.corpus is None else run.corpus(place.corpus).fingerprint(),
        "tokenizer": content_hash(run.tokenizer),
        "weights": weights_hash(run),
    } | ({"spelling": spelling.IDENTITY} if protocol.unknown == "spelled" else {})


def weights_hash(run: "Run") -> str:
    return file_hash(require(run.directory.checkpoints / f"{run.checkpoint}.ckpt"))[:16]


def stored(run: "Run", place: Place, about: Mapping[str, Any]) -> Scores | None:
    """The run's kept scores, where they are of just this; a run may have been renamed since."""
    try:
        expected = {key: value for key, value in about.items() if key != "run"}
        return kept_scores.read(scores_path(run, place.split), expected)
    except ImportError:
        return None
    except ValueError as error:
        log.warning("%s; measured anew", error)
        return None


# Comparing


def sides(runs: Sequence[tuple[str, "Run"]]) -> list[tuple[str, str, list["Run"]]]:
    """(name, configuration, runs): runs of one argument and one text that differ in their seed alone are together.

    Of those that do not differ in that, or whose weights are the same, the first is kept: copies are no replicates.
    runs: (the argument, a run that it stands for). A side's name is its argument, with what tells it from others there.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    asked: dict[tuple[str, str], dict[str, Any]] = {}
    for argument, run in runs:
        told, decided = run.directory.asked() | lengthened(run.directory.results()), run.config["decided"]
        key = (argument, treatment(told, decided))
        members = groups.setdefault(key, [])
        if (kept := _met(run, members)) is not None:
            log.info("%s: passed over, it is %s again (seed=%s)", run.path, kept.path, _seed(run))
            continue
        members.append(run)
        asked[key] = {k: v for k, v in numbering(with_read(told, decided)).items() if k != "seed"}
    found = []
    for (argument, configuration), members in groups.items():
        others = [asked[key] for key in groups if key[0] == argument and key[1] != configuration]
        own = _told_apart(asked[argument, configuration], others)
        found.append((" ".join([argument, *own]), configuration, members))
    return found


def _told_apart(asked: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """A side's settings that others of its argument do not have; of many, as few as tell it from each of them.

    What a side is built of comes first there, its model before all.
    """
    differing = {key: value for key, value in asked.items() if any(other.get(key) != value for other in others)}
    if len(differing) <= NAMED:
        return [f"{key}={value}" for key, value in differing.items()]
    told: list[str] = []
    left = list(others)

    def rank(key: str) -> tuple[bool, bool, int]:
        return not key.endswith("._target_"), not key.startswith("model."), key.count(".")

    for key in sorted(differing, key=rank):
        # One that differs from those alone from which it is told already tells nothing more.
        if apart := [other for other in left if other.get(key) != asked[key]]:
            left = [other for other in left if other not in apart]
            node, _, leaf = key.rpartition(".")
            told.append(f"{node}={short_name({leaf: asked[key]})}" if leaf == "_target_" else f"{key}={asked[key]}")
    return told


def _met(run: "Run", others: Iterable["Run"]) -> "Run | None":
    """Of others of its configuration, the one that it is itself or a copy of."""
    return next((o for o in others if _seed(o) == _seed(run) or weights_hash(o) == weights_hash(run)), None)


def _seed(run: "Run") -> Any:
    return run.directory.asked().get("seed")


def compared(
    groups: Sequence[tuple[str, str, list["Run"]]],
    place: Place,
    evaluation: Mapping[str, Any] | None,
    own_protocols: bool,
    **how: Any,
) -> dict[str, Any]:
    """`comparison.compare` on runs, measured where their scores are not kept; with the floors beside them."""
    found, met = [], {}
    protocols_of = [
        [run.protocol if evaluation is None else run.resolve(evaluation, others=own_protocols) for run in runs]
        for *_, runs in groups
    ]
    check_lanes(evaluation or {}, chain.from_iterable(protocols_of))
    for (name, configuration, runs), resolved in zip(groups, protocols_of, strict=True):
        measured, replicates, others = [], [], met.setdefault(configuration, [])
        for run, protocol in zip(runs, resolved, strict=True):
            log.debug("%s, %s", run.path, protocol.name)
            measured.append(scored(run, place, protocol).scores)
            # It may also stand on another side, as a member of a directory that is compared with it.
            first = _met(run, others)
            others += [run] if first is None else []
            replicates.append(str((first or run).path))
        found.append(Side(name, configuration, measured, replicates))
    check(found, own_protocols)
    report = compare(found, **how)
    # By all that they say: a name leaves out how far back a model sees that carries its state.
    protocols: list[dict[str, Any]] = []
    for told, side in zip(report["sides"], found, strict=True):
        told["protocol"] = side.runs[0].about["protocol"]
        protocols += [run.about["protocol"] for run in side.runs if run.about["protocol"] not in protocols]
    first = groups[0][2][0]
    # Of several training texts there are no floors that stand below all.
    trained_on = {run.config["decided"]["fingerprint"] for *_, runs in groups for run in runs}
    protocol = Protocol(**found[0].runs[0].about["protocol"])
    floors = floors_of(first, place, protocol) if len(trained_on) == 1 else {}
    # All have as many where each costs its token: one tokenizer is asked for then.
    counted = {"unknown": found[0].runs[0].about["unknown"]}
    return {"split": place.split, "protocols": protocols, **counted, **report, "floors": floors}


def floors_of(run: "Run", place: Place, protocol: Protocol) -> dict[str, Any]:
    """The unigram and the 5-gram on the same tokens, under the same charges; nothing for another text."""
    if place.corpus is not None:
        return {}
    told = run.floors([place.split], protocol)["floors"]
    return {name: splits[place.split] for name, splits in told.items()}


def keep(run: "Run", place: Place, scores: Scores) -> Path:
    """Write the scores into the run's directory."""
    path = scores_path(run, place.split)
    if scores.counts is None:
        scores = replace(scores, counts=kept_scores.counts_of(scores.ids, train_counts(run)))
    kept_scores.write(scores, path)
    log.info("kept: %s, %s MB", path, f"{path.stat().st_size / 1e6:.1f}")
    return path
