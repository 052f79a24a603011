"""What an <unk> costs beyond its token: a model of how words that a vocabulary lacks are spelled.

A word-level model that predicts <unk> has not said which word it was. Under `unknown=spelled` each <unk> is charged
-ln P(spelling | <unk>) besides, so that its bits per byte compare with those of models that spell every word. P is an
interpolated modified Kneser-Ney 5-gram over the spelling's UTF-8 bytes and an end mark, fitted on the rare words of the
train split, each once. It gives some probability to words that are in the vocabulary, so the charge is an upper bound.
Where the text itself has the word "<unk>" (WikiText-2), that is one more event, by its share of training's <unk>.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from lmlab.data.corpora import Corpus
from lmlab.data.store import Split, Store
from lmlab.evaluation.floors import keep
from lmlab.evaluation.protocol import Protocol
from lmlab.models.ngram import NGramLM
from lmlab.seal import seal, unseal

# Raised when charges change, as is `protocol.VERSIONS` then.
IDENTITY = 2
ORDER = 5
# The end of a spelling, and what its first byte is predicted from; bytes are themselves.
END = 256
# Spellings to learn from: where the text has fewer unknown words, its rarest known ones join them.
ENOUGH = 1_000
LITERAL = "<unk>"


class SpellingModel:
    """ln P(spelling | <unk>), fitted on how often each unknown spelling occurs in training, and on rare known ones.

    unknown: {spelling: occurrences} of training's <unk>. rare: known words of training, rarest first. once: how many
    words occur once, which stands for the unknown words to come where training has none (Good-Turing).
    """

    def __init__(self, unknown: Mapping[str, int], rare: list[str], once: int):
        others = {word: n for word, n in unknown.items() if word != LITERAL}
        words = sorted(others)
        words += rare[: max(0, ENOUGH - len(words))]
        literal = unknown.get(LITERAL, 0)
        # Krichevsky and Trofimov 1981: half a count for each of the two, so that neither is ever impossible.
        self.literal = (literal + 0.5) / (literal + (sum(others.values()) or once) + 1)
        self.letters = NGramLM(vocab_size=END + 1, order=ORDER)
        self.letters.fit(np.array([id for word in words or [""] for id in _ids(word)]), END, many=True)

    def nats(self, words: list[str], may_be_literal: bool) -> np.ndarray:
        """-ln P of each spelling, (words,) float64. may_be_literal: the text may hold the word "<unk>" itself."""
        distinct = list(dict.fromkeys(words))
        cost = {word: self._spelled(word) for word in distinct}
        if may_be_literal:
            other = -math.log1p(-self.literal)
            cost = {w: -math.log(self.literal) if w == LITERAL else n + other for w, n in cost.items()}
        return np.array([cost[word] for word in words])

    def _spelled(self, word: str) -> float:
        ids = torch.tensor(_ids(word))[None]
        inputs = torch.cat((torch.tensor([[END]]), ids[:, :-1]), 1)
        hidden, _ = self.letters(inputs, None)
        return self.letters.head.nll(hidden, ids).double().sum().item()


def _ids(word: str) -> list[int]:
    return [*word.encode(), END]


def charged(
    store: Store, split: str, protocol: Protocol, corpus: Callable[[], Corpus], train: "Trained | None" = None
) -> Split:
    """The split, with the charges that the protocol asks for.

    corpus: gives the store's text, which is read where its charges are not yet in the cache beside it. train: the
    store and text that the model was trained on, where these are others.
    """
    part = store.split(split)
    if protocol.unknown == "token" or store.tokenizer.unk_id is None:
        return part
    part = copy(part)
    part.charges = _charges(store, split, corpus, train or (store, corpus))
    return part


Trained = tuple[Store, Callable[[], Corpus]]


def letters_of(store: Store, corpus: Callable[[], Corpus]) -> Callable[[str], float]:
    """What the letters of a text's <unk> cost, in nats. store, corpus: what the model was trained on."""
    model, tokenizer = _model(store, corpus), store.tokenizer
    return lambda text: float(model.nats([*_unknown_of(tokenizer, text)], tokenizer.kind == "word").sum())


def _charges(store: Store, split: str, corpus: Callable[[], Corpus], train: Trained) -> np.ndarray:
    # Zipped for its checksum: a changed byte would be another number.
    path = store.path / f"spelling-{IDENTITY}-{train[0].path.name}-{split}.npz"
    ids = store.split(split).ids
    try:
        found = np.load(path)["charges"]
        if found.shape == ids.shape and found.dtype == np.float32:
            return found
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, BadZipFile):
        pass
    tokenizer = store.tokenizer
    charges = np.zeros(len(ids), np.float32)
    words = _spellings(store, split, corpus)
    charges[np.asarray(ids) == tokenizer.unk_id] = _model(*train).nats(words, tokenizer.kind == "word")

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez(file, charges=charges)

    keep(path, write)
    return charges


def _model(store: Store, corpus: Callable[[], Corpus]) -> SpellingModel:
    """Kept beside the store as what it was counted from."""
    path = store.path / f"spelling-{IDENTITY}.json"
    try:
        told = json.loads(unseal(path.read_text(encoding="utf-8")))
        return SpellingModel(told["unknown"], told["rare"], told["once"])
    except (OSError, ValueError, KeyError, TypeError):
        told = _counted(store, corpus)
    text = seal(json.dumps(told, indent=1, ensure_ascii=False))
    keep(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return SpellingModel(told["unknown"], told["rare"], told["once"])


def _counted(store: Store, corpus: Callable[[], Corpus]) -> dict[str, Any]:
    tokenizer = store.tokenizer
    counts = np.bincount(store.split("train").ids, minlength=tokenizer.vocab_size)
    counts[list(tokenizer.specials.values())] = 0
    seen = np.flatnonzero(counts)
    rarest = seen[np.argsort(counts[seen], kind="stable")][:ENOUGH]
    rare = [tokenizer.to_bytes(int(id), None).decode("utf-8", "replace").strip() for id in rarest]
    unknown = Counter(_spellings(store, "train", corpus))
    return {"unknown": dict(unknown), "rare": rare, "once": int((counts == 1).sum())}


def _spellings(store: Store, split: str, corpus: Callable[[], Corpus]) -> list[str]:
    """The source of each <unk> of a split, in the order of the text, without the white space before it."""
    n = int((np.asarray(store.split(split).ids) == store.tokenizer.unk_id).sum())
    if not n:
        return []
    text = corpus()
    if text.fingerprint() != store.fingerprint:
        raise ValueError(
            f"evaluation.unknown=spelled reads how each <unk> of {split} was written, and the text is no longer "
            f"that of {store.path}; bring it back, or take evaluation.unknown=token"
        )
    words = list(_unknown(store.tokenizer, text, split))
    if len(words) != n:
        raise ValueError(f"{store.path} has {n} <unk> in {split}, the text {len(words)}; make it anew: lmlab prepare")
    return words


def _unknown(tokenizer: Any, text: Corpus, split: str) -> Iterator[str]:
    for document in text.documents(split):
        for piece in document.pieces:
            yield from _unknown_of(tokenizer, piece)


def _unknown_of(tokenizer: Any, piece: str) -> Iterator[str]:
    encoding = tokenizer.encode(piece)
    at = np.flatnonzero(encoding.ids == tokenizer.unk_id)
    if not len(at):
        return
    source, starts = piece.encode(), np.concatenate([[0], encoding.ends[:-1]])
    for i in at:
        word = source[starts[i] : encoding.ends[i]].decode("utf-8", "replace")
        yield word.strip() or word
