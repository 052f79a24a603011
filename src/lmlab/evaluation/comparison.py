"""Is a difference real? Runs, or sets of them, side by side on the same text: intervals, and verdicts in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lmlab.evaluation.bootstrap import FEWEST, MERGED, POWER, Estimate, estimates, holm, t_quantile
from lmlab.evaluation.protocol import Protocol
from lmlab.evaluation.scores import Scores

# A stream is cut in about so many blocks, of at least so many bytes.
STREAM_BLOCKS, SHORTEST_BLOCK = 200, 500
# So many documents, none of which outweighs the others, are blocks by themselves.
ENOUGH_DOCUMENTS = 30
# Needs beyond these are said to be out of reach.
MOST = 1_000
BLOCKS = ("auto", "documents", "stream")


@dataclass(frozen=True)
class Side:
    """Runs of one configuration that differ in their seed. configuration: the same exactly for runs that do.

    replicates: what names each run among those of its configuration, on whichever side; None: all are different ones.
    """

    name: str
    configuration: str
    runs: Sequence[Scores]
    replicates: Sequence[str] | None = None


def check(sides: Sequence[Side], own_protocols: bool) -> None:
    """Raise ValueError where numbers of two sides do not mean the same. own_protocols: contexts may differ."""
    first, *others = [(side, run) for side in sides for run in side.runs]
    shared = one_protocol([Protocol(**run.about["protocol"]) for side in sides for run in side.runs])
    for side, run in others:
        _check_pair(first[0].name, first[1], side.name, run, own_protocols, shared)


def one_protocol(protocols: Sequence[Protocol]) -> str:
    """The overrides that put models measured under these under one."""
    contexts = {p.max_context for p in protocols}
    if any(p.stride is not None for p in protocols):
        # One that slides cannot carry its state, nor see further than it can: windows suit all.
        return f"evaluation=sliding evaluation.max_context={min(n for n in contexts if n is not None)}"
    return "evaluation=carried or evaluation=documents" if len(contexts) == 1 else "evaluation=carried"


def _check_pair(name: str, one: Scores, other_name: str, other: Scores, own_protocols: bool, shared: str) -> None:
    ours, theirs = one.about, other.about
    sizes = [int(s.n_bytes.sum(dtype=np.int64)) for s in (one, other)]
    same_tokens = ours["tokenizer"] == theirs["tokenizer"]
    same_text = _same_text(ours, theirs)
    if same_text is None and sizes[0] == sizes[1]:
        raise ValueError(
            f"{name} and {other_name} have two corpora, and a store that an older version made does not say whether "
            f"their {ours['split']} is one text: give them one, as with corpus=files corpus.test=FILE split=test"
        )
    if not same_text or (same_tokens and sizes[0] != sizes[1]):
        raise ValueError(
            f"{name} and {other_name} were measured on different text: {sizes[0]:,} and {sizes[1]:,} bytes"
        )
    differing = Protocol(**ours["protocol"]).differences(Protocol(**theirs["protocol"]), own_protocols)
    if differing:
        remedy = "or, where each may have the context that suits it, own_protocols=true"
        raise ValueError(
            f"{name} and {other_name} are under two protocols ({'; '.join(differing)}): put both under one, as with "
            f"{shared}, " + ("which own_protocols=true asks for in all but contexts" if own_protocols else remedy)
        )
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{name} and {other_name} were measured on {sizes[0]:,} and {sizes[1]:,} bytes of the same text: "
            "evaluation.limit_tokens cuts other tokens elsewhere; set it to null"
        )
    for label, scores in ((name, one), (other_name, other)):
        if not same_tokens and scores.about["unknown"] and scores.about["protocol"]["unknown"] == "token":
            raise ValueError(
                f"{label} predicts {scores.about['unknown']:,} words as <unk> without saying which they are, and the "
                "two have different tokenizers: charge their letters with evaluation.unknown=spelled"
            )


def _same_text(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool | None:
    """Whether two `about` are of one text, whatever else their corpora have; None where that is not known."""
    if ours["split"] != theirs["split"]:
        return False
    if ours["text"] == theirs["text"]:
        return True
    one, other = (about.get("split_text") for about in (ours, theirs))
    return None if None in (one, other) else one == other


def notes(sides: Sequence[Side]) -> list[str]:
    """A line for each side whose tokenizer changes or drops text, where not all have the same."""
    if len({run.about["tokenizer"] for side in sides for run in side.runs}) == 1:
        return []
    found = []
    for side in sides:
        steps = list(dict.fromkeys(step for run in side.runs for step in run.about.get("lossy_steps", ())))
        if steps:
            found.append(
                f"{side.name} has a tokenizer that changes or drops text ({', '.join(steps)}): case, accents or white "
                "space that it folds cost nothing, so that its bits per byte may be too low beside another tokenizer's."
            )
    return found


def compare(
    sides: Sequence[Side],
    pairs: str,
    blocks: str,
    block_bytes: int | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """All that `lmlab compare` says, as plain data. pairs: `first` sets the first against each, `all` every two."""
    edges, stream = block_edges([run for side in sides for run in side.runs], blocks, block_bytes)
    sizes = np.diff(edges).astype(float)
    bits = [np.stack([_bits(run, edges) for run in side.runs]) for side in sides]
    # A run that stands on two sides is one replicate.
    together: dict[str, dict[Any, np.ndarray]] = {}
    for i, (side, runs) in enumerate(zip(sides, bits, strict=True)):
        names = side.replicates or [(i, j) for j in range(len(runs))]
        together.setdefault(side.configuration, {}).update(zip(names, runs, strict=True))
    of_configuration = {key: np.stack(list(runs.values())) for key, runs in together.items()}
    chosen = list(combinations(range(len(sides)), 2)) if pairs == "all" else [(0, j) for j in range(1, len(sides))]
    # One of them where both sides are of one configuration.
    replicates = [
        [of_configuration[key] for key in dict.fromkeys(sides[side].configuration for side in pair)] for pair in chosen
    ]
    found = estimates([(bits[i], bits[j]) for i, j in chosen], sizes, replicates, resamples, seed, stream)
    adjusted = holm([e.p for e in found])
    units, fewest = _units(sides), min(e.blocks for e in found)
    told = [
        _verdict(sides[i], sides[j], e, p, confidence, units, len(found))
        for (i, j), e, p in zip(chosen, found, adjusted, strict=True)
    ]
    return {
        "sides": [_summary(side, runs, sizes, units) for side, runs in zip(sides, bits, strict=True)],
        # The fewest that neighbours were joined to; each comparison has its own.
        "blocks": {"kind": "stream" if stream else "documents", "n": fewest, "bytes": float(sizes.sum() / fewest)},
        "confidence": confidence,
        "comparisons": told,
        "notes": notes(sides),
    }


def block_edges(runs: Sequence[Scores], blocks: str, block_bytes: int | None) -> tuple[np.ndarray, bool]:
    """Offsets in bytes that bound the blocks, at each of which a token of every run ends; whether they cut a stream.

    Raises ValueError where the text has too few.
    """
    ends = _common_ends(runs)
    first = runs[0]
    last = np.append(np.flatnonzero(np.diff(first.documents)), len(first) - 1)
    documents = np.unique(first.n_bytes.cumsum(dtype=np.int64)[last])
    documents = documents[np.isin(documents, ends)]
    if blocks == "auto":
        sizes = np.diff(documents, prepend=0).astype(float)
        # As many as equal ones would be (Kish 1965).
        effective = sizes.sum() ** 2 / (sizes**2).sum()
        blocks = "documents" if effective >= ENOUGH_DOCUMENTS and block_bytes is None else "stream"
    if blocks == "documents":
        edges = documents
    else:
        edges = _stretches(ends, block_bytes or max(SHORTEST_BLOCK, int(ends[-1]) // STREAM_BLOCKS))
    if len(edges) < FEWEST:
        found = f"{len(edges)} {'documents' if blocks == 'documents' else 'stretches'}"
        enough = blocks == "stream" and len(documents) >= FEWEST
        # Stretches so long that there are enough to join neighbours that correlate, or else enough at all.
        lengths = [int(ends[-1]) // n for n in (MERGED, *range(MERGED // 2, FEWEST - 1, -1))]
        length = next((n for n in lengths if n and len(_stretches(ends, n)) >= FEWEST), None)
        remedy = f", or blocks=documents ({len(documents)} of them)" if enough else ""
        if not enough and length is not None:
            remedy = f", or blocks=stream block_bytes={length}"
        raise ValueError(
            f"the text has {found}, and at least {FEWEST} are needed to tell what is chance: give more text{remedy}"
        )
    return np.append(0, edges), blocks == "stream"


def _stretches(ends: np.ndarray, size: int) -> np.ndarray:
    """Offsets that end stretches of about `size` bytes, the last at the end of the text. ends: where tokens do."""
    total = int(ends[-1])
    wanted = np.arange(1, max(1, total // size)) * size
    return np.unique(np.append(ends[np.searchsorted(ends, wanted)], total))


def _common_ends(runs: Sequence[Scores]) -> np.ndarray:
    """Offsets at which a token of every run ends."""
    common: np.ndarray | None = None
    seen: list[np.ndarray] = []
    for run in runs:
        if any(sizes is run.n_bytes or np.array_equal(sizes, run.n_bytes) for sizes in seen):
            continue
        seen.append(run.n_bytes)
        ends = np.unique(run.n_bytes.cumsum(dtype=np.int64))
        common = ends if common is None else np.intersect1d(common, ends, assume_unique=True)
    return common[common > 0]


def _bits(run: Scores, edges: np.ndarray) -> np.ndarray:
    """Of each block. A token belongs where its last byte is; one of no bytes (<eos>) to the byte before it."""
    places = np.searchsorted(run.n_bytes.cumsum(dtype=np.int64), edges[1:], side="right")
    total = np.append(0.0, run.costs.cumsum())[places]
    return np.diff(total, prepend=0.0) / math.log(2)


def _units(sides: Sequence[Side]) -> tuple[str, int]:
    """What perplexity is per: the token where all have the same, else the word of the source; and how many."""
    first = sides[0].runs[0]
    same = all(run.about["tokenizer"] == first.about["tokenizer"] for side in sides for run in side.runs)
    sums = first.likelihood()
    return ("ppl", sums.tokens) if same else ("word_ppl", sums.words)


def _summary(side: Side, bits: np.ndarray, sizes: np.ndarray, units: tuple[str, int]) -> dict[str, Any]:
    name, n = units
    each = bits.sum(1) / sizes.sum()
    ppl = _exp(float(bits.sum(1).mean()) * math.log(2) / n)
    spread = float(each.std(ddof=1)) if len(each) > 1 else None
    return {
        "name": side.name,
        "runs": len(each),
        "bpb": float(each.mean()),
        "each": each.tolist(),
        "sd": spread,
        name: ppl,
    }


def _verdict(
    ours: Side, theirs: Side, e: Estimate, p: float, confidence: float, units: tuple[str, int], n_compared: int
) -> dict[str, Any]:
    unit, n = units
    low, high = e.interval(confidence)
    sums = [run.likelihood() for run in theirs.runs]
    base = float(np.mean([s.nats for s in sums])) / n
    per_unit = math.log(2) * sums[0].bytes / n
    real = p < 1 - confidence
    # Of many, the level at which any of them is sure to be told (Bonferroni; Holm's first step).
    level = 1 - (1 - confidence) / n_compared
    verdict = "not distinguishable" if not real else "better" if e.difference < 0 else "worse"
    told = {
        "ours": ours.name,
        "theirs": theirs.name,
        "bpb": e.difference,
        "bpb_interval": [low, high],
        unit: _exp(base + e.difference * per_unit) - _exp(base),
        f"{unit}_interval": [_exp(base + x * per_unit) - _exp(base) for x in (low, high)],
        "p": e.p,
        "p_holm": p,
        "blocks": e.blocks,
        "detectable": e.detectable(level),
        "seed_share": None if e.seeds is None else e.seeds / (e.seeds + e.text) if e.seeds + e.text else 0.0,
        "level": "models" if e.seeds is None else "configurations",
        "verdict": verdict,
    }
    return told | {"words": _words(verdict, ours, theirs, e, n_compared, level)}


def _words(verdict: str, ours: Side, theirs: Side, e: Estimate, n_compared: int, level: float) -> str:
    corrected = f" (Holm, {n_compared} comparisons)" if n_compared > 1 else ""
    if verdict == "not distinguishable":
        said = [f"{ours.name} and {theirs.name} are not distinguishable{corrected}."]
    else:
        said = [f"{ours.name} is {verdict} than {theirs.name}{corrected}, by {abs(e.difference):.4f} bits per byte."]
    if ours.configuration == theirs.configuration:
        said.append("They are one configuration, and differ as its seeds do.")
        return " ".join(said)
    if e.seeds is None:
        said.append(
            "One seed each: this is about these two models; of their configurations three seeds each would tell."
        )
    if verdict == "not distinguishable":
        said.append(needs(e, level))
    return " ".join(said)


def needs(e: Estimate, level: float) -> str:
    """How many seeds, or how much text, would tell a true difference of the size that was seen, at that level."""
    # Large samples: what is asked for has more degrees of freedom than what there is.
    wanted = (abs(e.difference) / (t_quantile(0.5 + level / 2, 1e6) + t_quantile(POWER, 1e6))) ** 2
    if not wanted:
        return "No amount of text would tell a difference of nothing."
    seeds = e.seeds or 0.0
    if e.text + seeds <= wanted:
        return f"If {abs(e.difference):.4f} is the true difference, a repetition would tell it more often than not."
    ways = []
    if seeds < wanted:
        ways.append((e.text / (wanted - seeds), "{:.1f} times as much text"))
    if seeds and e.text < wanted:
        ways.append((math.ceil(2 * e.each / (wanted - e.text)), "{:.0f} seeds of each"))
    if not ways:
        seeds_needed, text_needed = math.ceil(4 * e.each / wanted), 2 * e.text / wanted
        if max(seeds_needed, text_needed) <= MOST:
            both = f"{max(2, seeds_needed)} seeds of each and {max(1.0, text_needed):.1f} times as much text"
            return f"To tell {abs(e.difference):.4f}, if it is the true difference, takes {both}."
    ways = [words.format(n) for n, words in ways if n <= MOST]
    if not ways:
        return f"A difference of {abs(e.difference):.4f} is too small to be told with any reasonable amount of either."
    return f"To tell {abs(e.difference):.4f}, if it is the true difference, takes {' or '.join(ways)}."


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
