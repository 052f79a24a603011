"""What an audit asks of the text: its sizes, its tokens, its vocabulary, whether train and held-out text overlap."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lmlab.data.corpora import Corpus, Document
from lmlab.data.store import Store
from lmlab.evaluation.checks import Check
from lmlab.evaluation.overlap import Overlap, covered, overlap, stretches

# Of the held-out words: if a model knew these by heart, its held-out nll were too low by one part in a hundred.
MOST_SHARED = 0.01
# A stretch of tokens as long as 13 words covers so many bytes of text, and so many tokens, punctuation among them.
STRETCH_BYTES, STRETCH_TOKENS = 80, 16
# The quick comparison reads so many tokens of train, the nearest to what is held out.
QUICK_TOKENS = 3_000_000
# Characters of a passage that are shown.
SHOWN = 160
# Of kinds whose every entry is a word or a character of the train text.
WHOLE = ("char", "word")


def ledger(store: Store, measured: Mapping[str, Mapping[str, float]], corpus: Corpus | None) -> Check:
    """The sizes that numbers are divided by are those of the text: of the store, of results, of the source itself.

    measured: {split: sums} of results.json. corpus: None leaves the source unread.
    """
    name, told, wrong = "byte ledger", [], []
    for split in store.splits:
        part = store.split(split)
        sums = {"tokens": len(part)}
        sums |= {k: int(np.asarray(getattr(part, f"n_{k}")).sum(dtype=np.int64)) for k in ("bytes", "chars", "words")}
        told.append(f"{split} {sums['bytes']:,}")
        others = {"the store's record": part.totals, "results.json": measured.get(split, sums)}
        if corpus is not None:
            others["the source"] = _sizes(corpus, split)
        for owner, found in others.items():
            wrong += [
                f"{split}: {owner} has {found[k]:,} {k}, the tokens cover {sums[k]:,}"
                for k in found.keys() & sums.keys()
                if found[k] != sums[k]
            ]
    total = sum(int(np.asarray(store.split(s).n_bytes).sum(dtype=np.int64)) for s in store.splits)
    files = None if corpus is None or not hasattr(corpus, "file_bytes") else corpus.file_bytes()
    if files is not None and files != total:
        wrong.append(f"the files have {files:,} bytes, all tokens cover {total:,}")
    figure = f"{', '.join(told)} bytes"
    figure += "" if corpus is None else ", as in the source" + ("" if files is None else " and its files")
    return Check(name, not wrong, figure if not wrong else wrong[0], wrong[1:])


def _sizes(corpus: Corpus, split: str) -> dict[str, int]:
    n_bytes = n_chars = 0
    for document in corpus.documents(split):
        for piece in document.pieces:
            n_bytes += len(piece.encode())
            n_chars += len(piece)
    return {"bytes": n_bytes, "chars": n_chars}


def decoding(store: Store, corpus: Corpus | None) -> Check:
    """Decoding gives the text back: every document of the source, or, where that is not read, a stretch of each split.

    A tokenizer by character is asked for the documents that have no <unk>.
    """
    tokenizer = store.tokenizer
    if not tokenizer.lossless and tokenizer.kind != "char":
        return Check("decode", None, f"a {tokenizer.kind} tokenizer does not promise it")
    n_bytes = n_documents = skipped = 0
    for split in store.splits:
        for name, ids, text in _pairs(store, split, corpus):
            if not tokenizer.lossless and (ids == tokenizer.unk_id).any():
                skipped += 1
                continue
            decoded = tokenizer.decode(ids)
            if text is None:
                text, decoded = decoded, tokenizer.decode(tokenizer.encode(decoded).ids)
            if decoded != text:
                at = next((i for i, (a, b) in enumerate(zip(decoded, text, strict=False)) if a != b), len(decoded))
                shown = f"{split}, {name}: {decoded[at : at + 20]!r} decoded where {text[at : at + 20]!r} stands"
                return Check("decode", False, shown)
            n_bytes, n_documents = n_bytes + len(text.encode()), n_documents + 1
    if not n_documents:
        return Check("decode", None, "every document has an <unk>")
    left = f"; {skipped:,} with an <unk> left out" if skipped else ""
    what = "documents" if corpus is not None else "stretches of text"
    return Check("decode", True, f"{n_documents:,} {what}, {n_bytes:,} bytes, come back the same{left}")


def _pairs(store: Store, split: str, corpus: Corpus | None) -> Iterator[tuple[str, np.ndarray, str | None]]:
    """(name, ids, the source's text where it is read)."""
    part = store.split(split)
    if corpus is None:
        yield "its beginning", np.asarray(part.ids[:4096]), None
        return
    edges = [*part.doc_starts.tolist(), len(part)]
    for document, start, stop in zip(corpus.documents(split), edges[:-1], edges[1:], strict=True):
        yield document.name, np.asarray(part.ids[start:stop]), "".join(document.pieces)


def vocabulary(store: Store, remade: Any, given: str | None) -> Check:
    """No entry owes its place to held-out text.

    remade: the tokenizer trained again on train alone, which tells all; None asks only whether an entry occurs in
    held-out text and never in train, which for characters and words says as much. given: why it was not trained here.
    """
    tokenizer, name = store.tokenizer, "vocabulary"
    if given is not None:
        return Check(name, None, given)
    if remade is not None:
        same = remade.to_json() == tokenizer.to_json()
        extra = sorted(set(_entries(tokenizer)) - set(_entries(remade)))
        figure = f"trained again on train alone: {'the same' if same else 'another'}, {tokenizer.vocab_size:,} entries"
        details = [f"{len(extra):,} entries that train alone does not give: {', '.join(map(repr, extra[:8]))}"]
        return Check(name, same, figure, [] if same or not extra else details)
    if tokenizer.kind not in WHOLE:
        return Check(name, None, "lmlab audit trains the tokenizer again to tell")
    counts = {s: np.bincount(store.split(s).ids, minlength=tokenizer.vocab_size) for s in store.splits}
    held_out = sum(counts[s] for s in store.splits if s != "train")
    strange = np.flatnonzero((counts["train"] == 0) & (held_out > 0))
    strange = [i for i in strange.tolist() if i not in tokenizer.specials.values()]
    if strange:
        shown = ", ".join(repr(tokenizer.token(i)) for i in strange[:8])
        return Check(name, False, f"{len(strange):,} entries occur in held-out text and never in train: {shown}")
    return Check(name, True, f"each of {tokenizer.vocab_size:,} entries that held-out text has occurs in train")


def _entries(tokenizer: Any) -> list[str]:
    return [tokenizer.token(i) for i in range(tokenizer.vocab_size)]


def tokens_overlap(store: Store) -> Check:
    """Stretches of tokens that held-out text shares with train, of which the last three million tokens are read."""
    name, held_out = "overlap", [s for s in store.splits if s != "train"]
    if "train" not in store.splits or not held_out:
        return Check(name, None, "there are no two splits")
    parts = [store.split(s) for s in held_out]
    size = sum(int(p.totals["bytes"]) for p in parts) / sum(map(len, parts))
    n = max(STRETCH_TOKENS, math.ceil(STRETCH_BYTES / size))
    train = store.split("train").ids
    marks, _ = covered([np.asarray(p.ids) for p in parts], [np.asarray(train[-QUICK_TOKENS:])], n)
    read = "" if len(train) <= QUICK_TOKENS else f"the last {QUICK_TOKENS:,} of "
    shares = {s: float(mark.mean()) for s, mark in zip(held_out, marks, strict=True)}
    details = []
    for split, part, mark in zip(held_out, parts, marks, strict=True):
        runs = sorted(stretches(mark).tolist(), key=lambda run: run[0] - run[1])[:2]
        details += [f"{split}: {_short(store.tokenizer.decode(part.ids[a:b]))}" for a, b in runs]
    figure = ", ".join(f"{share:.2%} of {split}" for split, share in shares.items())
    figure += f" in stretches of {n} tokens that {read}train's {len(train):,} have too"
    return Check(name, max(shares.values()) <= MOST_SHARED, figure, details)


def words_overlap(corpus: Corpus, splits: tuple[str, ...], shown: int) -> Check:
    """The same stretches of words and near copies, over all of the source, with the passages."""
    name, held_out = "overlap", [s for s in splits if s != "train"]
    if "train" not in splits or not held_out:
        return Check(name, None, "there are no two splits")
    found = overlap(
        {s: _texts(corpus.documents(s)) for s in held_out}, _texts(corpus.documents("train")), shown
    )  # fmt: skip
    figure = "; ".join(
        f"{s}: {o.same:,} of {o.words:,} words in train's stretches, {o.near:,} in near copies ({o.share:.2%})"
        for s, o in found.items()
    )
    details = [line for s, o in found.items() for line in _passages(s, o)]
    return Check(name, max(o.share for o in found.values()) <= MOST_SHARED, figure, details)


def _texts(documents: Iterator[Document]) -> Iterator[tuple[str, str]]:
    for document in documents:
        yield document.name, "".join(document.pieces)


def _passages(split: str, found: Overlap) -> list[str]:
    return [
        f"{split}, {p.document}, {p.words} words "
        + ("as in" if p.share == 1 else f"{p.share:.0%} in")
        + f" {p.train_document}: {_short(p.text)}"
        for p in found.passages
    ]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
