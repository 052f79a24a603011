"""JSON that every program reads: it has no infinity and no NaN, which a record therefore holds as null."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

# What a likelihood's numbers are sums of, or divided by: words of Chinese prose are long, and their perplexity endless.
DIVIDED_BY = {"nats": "", "nll": "tokens", "ppl": "tokens", "bpb": "bytes", "bpc": "chars", "word_ppl": "words"}


def finite(tree: Any) -> Any:
    """The tree with null where a number is infinite or NaN."""
    if isinstance(tree, Mapping):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def numbers(node: Any, names: Iterable[str]) -> Any:
    """The node with NaN where one of its numbers was written as null."""
    if not isinstance(node, Mapping):
        return node
    return {**node, **{name: math.nan for name in names if name in node and node[name] is None}}


def likelihood(sums: Any) -> Any:
    """A split's or a floor's sums, with infinity where it was written as null, and NaN where nothing was divided by."""
    if not isinstance(sums, Mapping):
        return sums
    lost = [name for name in DIVIDED_BY if name in sums and sums[name] is None]
    return {**sums, **{name: math.nan if sums.get(DIVIDED_BY[name]) == 0 else math.inf for name in lost}}


def validation(point: Any) -> Any:
    """A point of a curve: its loss is finite, or training had failed, but exp(loss) may be past the largest float."""
    if not isinstance(point, Mapping):
        return point
    return numbers({**point, "val/ppl": math.inf} if point.get("val/ppl", 0) is None else point, point)


def results(tree: Any) -> Any:
    """results.json's content, whose likelihoods are numbers again."""
    if not isinstance(tree, dict):
        return tree
    told = dict(tree)
    if isinstance(splits := tree.get("splits"), dict):
        told["splits"] = {split: likelihood(sums) for split, sums in splits.items()}
    if isinstance(floors := tree.get("floors"), dict):
        told["floors"] = {
            name: {split: likelihood(sums) for split, sums in floor.items()} if isinstance(floor, dict) else floor
            for name, floor in floors.items()
        }
    if isinstance(training := tree.get("training"), dict) and isinstance(history := training.get("history"), list):
        told["training"] = training | {"history": [validation(point) for point in history]}
    return told
