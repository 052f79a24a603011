"""Interpolated modified Kneser-Ney: from a stream of ids to discounted probabilities and back-off weights.

An n-gram of order k is a key, `node * (V + 1) + word`, where `node` is the place of its first k - 1 words in the sorted
keys of order k - 1, and a word is id + 1 (0 is "nothing"). At order 1 the node is the word itself.
"""

from dataclasses import dataclass

import numpy as np
import torch

# Greater than every key: the place of an n-gram that was never seen, so that a search always lands somewhere.
UNSEEN = np.iinfo(np.int64).max
# For orders whose counts of counts give no usable estimate (small texts, alphabets); KenLM's choice.
FALLBACK = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class Table:
    """The n-grams of one order k >= 2.

    keys: (G + 1,) int64, sorted, the last one UNSEEN. kept: (G + 1,) float64, max(c - D(c), 0) / c(context).
    backoff: what each context of k - 1 words leaves to the lower order, by node; 1 for a context never seen.
    """

    keys: np.ndarray
    kept: np.ndarray
    backoff: np.ndarray


def discounts(counts: np.ndarray) -> np.ndarray:
    """D(0), D(1), D(2), D(3+) from counts of counts (Chen and Goodman 1999, eq. 26).

    FALLBACK where an estimate is undefined or outside (0, c]: at 0 or below an unseen word could get no probability.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if n[1:5].all():
        y = n[1] / (n[1] + 2 * n[2])
        d = [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
        if all(0 < d[i] <= i + 1 for i in range(3)):
            return np.array([0.0, *d])
    return np.array([0.0, *FALLBACK])


def estimate(
    ids: np.ndarray, start_id: int, vocab_size: int, order: int, many: bool = False
) -> tuple[np.ndarray, list[Table]]:
    """Probabilities of order 1, (V,) float64, and the tables of orders 2 to `order`.

    ids: (N,) text, predicted from `start_id` on. No n-gram reaches back past that; one that begins the text has
    "nothing" on its left, which counts as one more distinct left neighbour.
    many: ids are many texts, each ended by `start_id`, from which the next begins, and no n-gram reaches across it.
    One that begins a text has no left neighbours to be counted by: its raw count stands (Chen and Goodman's <s>).
    """
    stream = np.concatenate([[start_id], ids]).astype(np.int64)
    if len(stream) == 1:
        raise ValueError("ids is empty: an n-gram model needs at least one token to count")
    if stream.min() < 0 or stream.max() >= vocab_size:
        raise ValueError(f"ids run from {stream.min()} to {stream.max()}, outside vocab_size={vocab_size}")
    keys, counts = _count(stream + 1, vocab_size + 1, order, start_id + 1 if many else None)
    kept, left = _discount(counts[0], np.zeros(vocab_size + 1, np.int64), 1)
    unigram = kept[1:] + left / vocab_size
    tables, n_nodes = [], vocab_size + 1
    for k, c in zip(keys, counts[1:], strict=True):
        kept, backoff = _discount(c, k // (vocab_size + 1), n_nodes)
        tables.append(Table(np.append(k, UNSEEN), np.append(kept, 0.0), backoff))
        n_nodes = len(k) + 1
    return unigram, tables


def _count(words: np.ndarray, base: int, order: int, boundary: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sorted keys of orders 2.., and counts of orders 1..: raw at the highest, distinct left neighbours below it.

    words: (N + 1,) in 1..base - 1; the first is only a context. boundary: what ends a text and begins the next.
    """
    if boundary is not None:
        return _count_texts(words, base, order, boundary)
    all_keys, all_counts = [], []
    node, n_nodes = words, base  # node[i]: the n-gram of order k - 1 that ends at position i + k - 2
    counts = np.bincount(words[1:], minlength=base)
    for k in range(2, order + 1):
        grams = torch.from_numpy(node[:-1] * base + words[k - 1 :])
        # Where n-grams repeat often, as characters' do, np.unique takes seven times as long.
        keys, place, raw = (t.numpy() for t in torch.unique(grams, return_inverse=True, return_counts=True))
        suffix = np.empty_like(keys)  # every n-gram without its first word
        suffix[place] = node[1:]
        continuations = np.bincount(suffix, minlength=n_nodes)
        if k > 2:
            continuations[node[:1]] += 1  # the n-gram that begins the text
        all_keys.append(keys)
        all_counts.append(continuations)
        node, n_nodes, counts = place, len(keys), raw
    return all_keys, [*all_counts, counts]


def _count_texts(words: np.ndarray, base: int, order: int, boundary: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As `_count`, of texts between boundaries, the first of which is words[0]."""
    all_keys, all_counts = [], []
    node, n_nodes, counts = words, base, np.bincount(words[1:], minlength=base)
    inside = np.ones(len(words), bool)  # inside[i]: the n-gram of order k that begins at i holds no boundary within
    for k in range(2, order + 1):
        inside = inside[:-1] & (words[k - 2 : -1] != boundary) if k > 2 else inside[:-1]
        grams = torch.from_numpy(node[:-1][inside] * base + words[k - 1 :][inside])
        keys, place, raw = (t.numpy() for t in torch.unique(grams, return_inverse=True, return_counts=True))
        suffix = np.empty_like(keys)
        suffix[place] = node[1:][inside]
        continuations = np.bincount(suffix, minlength=n_nodes)
        if k > 2:
            begins = node[(words[: len(node)] == boundary) & (node >= 0)]
            continuations[begins] = counts[begins]
        all_keys.append(keys)
        all_counts.append(continuations)
        node = np.full(len(inside), -1)
        node[inside] = place
        n_nodes, counts = len(keys), raw
    return all_keys, [*all_counts, counts]


def _discount(counts: np.ndarray, contexts: np.ndarray, n_contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """What each n-gram keeps, and what each context leaves to the lower order, as shares of the context's count."""
    taken = discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(contexts, counts, n_contexts)
    left = np.bincount(contexts, taken, n_contexts)
    seen = total > 0
    return (counts - taken) / total[contexts], np.divide(left, total, out=np.ones(n_contexts), where=seen)
