"""What an audit asks of the text: its sizes, its tokens, its vocabulary, whether train and held-out text overlap."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lmlab.data.corpora import Corpus, Document
from lmlab.data.store import Split, Store
from lmlab.evaluation.checks import Check
from lmlab.evaluation.overlap import LEAST, Overlap, covered, document_sizes, overlap, parts, stretches
from lmlab.evaluation.words import CHARACTER, WORD, Block
from lmlab.tokenizers import StreamDecoder

# Of the held-out words: if a model knew these by heart, its held-out nll were too low by one part in a hundred.
MOST_SHARED = 0.01
# A stretch of tokens as long as 13 words covers so many bytes of text, and so many tokens, punctuation among them.
STRETCH_BYTES, STRETCH_TOKENS = 80, 16
# The quick comparison reads so many tokens of train, the nearest to what is held out.
QUICK_TOKENS = 3_000_000
# No token's id.
NOWHERE = np.uint64(2**63)
# Characters of a passage that are shown.
SHOWN = 160
# Tokens that are decoded at once.
DECODED = 1 << 16
# Of kinds whose every entry is a word or a character of the train text.
WHOLE = ("char", "word")
_SIZES = ("words", "chars", "bytes")


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
        for name, ids, pieces in _pairs(store, split, corpus):
            if not tokenizer.lossless and any((part == tokenizer.unk_id).any() for part in _steps(ids)):
                skipped += 1
                continue
            n, differ = _compared(*_both(tokenizer, ids, pieces))
            if differ:
                return Check("decode", False, f"{split}, {name}: {differ[0]!r} decoded where {differ[1]!r} stands")
            n_bytes, n_documents = n_bytes + n, n_documents + 1
    if not n_documents:
        return Check("decode", None, "every document has an <unk>")
    left = f"; {skipped:,} with an <unk> left out" if skipped else ""
    what = "documents" if corpus is not None else "stretches of text"
    return Check("decode", True, f"{n_documents:,} {what}, {n_bytes:,} bytes, come back the same{left}")


def _pairs(store: Store, split: str, corpus: Corpus | None) -> Iterator[tuple[str, np.ndarray, Iterable[str] | None]]:
    """(name, ids, the pieces of the source's text where it is read)."""
    part = store.split(split)
    if corpus is None:
        yield "its beginning", np.asarray(part.ids[:4096]), None
        return
    edges = [*part.doc_starts.tolist(), len(part)]
    for document, start, stop in zip(corpus.documents(split), edges[:-1], edges[1:], strict=True):
        yield document.name, np.asarray(part.ids[start:stop]), document.pieces


def _both(tokenizer: Any, ids: np.ndarray, pieces: Iterable[str] | None) -> tuple[Iterable[str], Iterable[str]]:
    """What the ids decode to, and what stands there; without the source, what its own tokens decode to."""
    if pieces is None:
        text = tokenizer.decode(ids)
        return [tokenizer.decode(tokenizer.encode(text).ids)], [text]
    return ([tokenizer.decode(ids)] if len(ids) <= DECODED else _streamed(tokenizer, ids)), pieces


def _streamed(tokenizer: Any, ids: np.ndarray) -> Iterator[str]:
    decoder = StreamDecoder(tokenizer)
    yield from map(decoder.push_all, _steps(ids))
    yield decoder.flush()


def _steps(ids: np.ndarray) -> Iterator[np.ndarray]:
    return (ids[start : start + DECODED] for start in range(0, len(ids), DECODED))


def _compared(decoded: Iterable[str], text: Iterable[str]) -> tuple[int, tuple[str, str] | None]:
    """Bytes of the text, and some of both from where they differ; either may come in any pieces."""
    decoded, text, left, right, n_bytes = iter(decoded), iter(text), "", "", 0
    while True:
        while not left and (more := next(decoded, None)) is not None:
            left = more
        while not right and (more := next(text, None)) is not None:
            right = more
            n_bytes += len(right.encode())
        n = min(len(left), len(right))
        if left[:n] != right[:n] or not n:
            if not (left or right):
                return n_bytes, None
            at = next((i for i in range(n) if left[i] != right[i]), n)
            return n_bytes, (left[at : at + 20], right[at : at + 20])
        left, right = left[n:], right[n:]


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
    """Stretches of tokens that held-out text shares with train, of which the last three million tokens are read.

    A document that is shorter is shared if it is, whole, a document of train: see `_long_enough`.
    """
    name, held_out = "overlap", [s for s in store.splits if s != "train"]
    if "train" not in store.splits or not held_out:
        return Check(name, None, "there are no two splits")
    splits = [store.split(s) for s in held_out]
    size = sum(int(p.totals["bytes"]) for p in splits) / sum(map(len, splits))
    n = max(STRETCH_TOKENS, math.ceil(STRETCH_BYTES / size))
    train = store.split("train")
    unk_id = store.tokenizer.unk_id
    found = [_tokens(part, 0, _long_enough(part, unk_id)) for part in splits]
    if unk_id is not None:
        # What a stretch with an <unk> says is not known: no token of train is this one.
        found = [replace(b, items=np.where(b.items == unk_id, NOWHERE, b.items)) for b in found]
    read = _tokens(train, max(0, len(train) - QUICK_TOKENS), True)
    marks, _ = covered(found, (part for _, part in parts(read, n)), n)
    last = "" if len(read.items) == len(train) else f"the last {QUICK_TOKENS:,} of "
    shares = {s: float(mark.mean()) for s, mark in zip(held_out, marks, strict=True)}
    details, rule, brief = [], False, {}
    for split, block, mark in zip(held_out, found, marks, strict=True):
        longest = sorted(stretches(mark, block.edges).tolist(), key=lambda run: run[0] - run[1])[:2]
        details += [f"{split}: {_short(store.tokenizer.decode(block.items[a:b]))}" for a, b in longest]
        sizes = document_sizes(block)
        whole = (sizes < n) & block.whole
        rule = rule or bool(whole.any())
        known = np.diff(stretches(block.items != NOWHERE, block.edges), axis=1)[:, 0]
        brief[split] = 1 - int(sizes[whole].sum() + known[known >= n].sum()) / len(mark)
    figure = ", ".join(f"{share:.2%} of {split}" for split, share in shares.items())
    figure += f" in stretches of {n} tokens that {last}train's {len(train):,} have too"
    why = f"under {LEAST} words" + ("" if unk_id is None else " or with an <unk>")
    return _overlap_check(shares, figure, rule, brief, why, details)


def _tokens(part: Split, first: int, whole: np.ndarray | bool) -> Block:
    """The tokens from `first` on; a document that began before it is not whole."""
    starts = np.asarray(part.doc_starts)
    inside = starts[np.searchsorted(starts, first) :] - first
    edges = np.unique(np.concatenate([[0], inside, [len(part) - first]]))
    all_of_it = np.isin(edges[:-1], inside) & whole
    return Block(np.asarray(part.ids[first:]), None, edges, np.arange(len(all_of_it)), all_of_it)


def _long_enough(part: Split, unk_id: int | None) -> np.ndarray:
    """(documents,) bool: those of at least LEAST words, or twice as many characters of three bytes, and no <unk>.

    Of a few tokens, those with an <unk> may stand for other text.
    """
    starts = np.asarray(part.doc_starts)
    sums = {k: np.add.reduceat(np.asarray(getattr(part, f"n_{k}")), starts, dtype=np.int64) for k in _SIZES}
    # Han, kana and Thai have three bytes a character; the rest of them are signs and digits.
    spaceless = (sums["chars"] >= LEAST * WORD // CHARACTER) & (sums["bytes"] >= 2.5 * sums["chars"])
    enough = (sums["words"] >= LEAST) | spaceless
    return enough if unk_id is None else enough & ~np.logical_or.reduceat(np.asarray(part.ids) == unk_id, starts)


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
    rule = any(o.short > o.unasked for o in found.values())
    brief = {s: o.unasked / o.words if o.words else 1.0 for s, o in found.items()}
    return _overlap_check({s: o.share for s, o in found.items()}, figure, rule, brief, f"under {LEAST} words", details)


def _overlap_check(
    shares: Mapping[str, float], figure: str, rule: bool, brief: Mapping[str, float], why: str, details: list[str]
) -> Check:
    """rule: whether whole documents were compared. brief: the share of each split that was not asked; why: how short.

    Nothing is found wrong in a split of which most was not asked: it does not pass either.
    """
    passed: bool | None = max(shares.values()) <= MOST_SHARED
    told = f"documents shorter than a stretch count if train has the whole of one, from {LEAST} words on"
    if rule:
        details = [*details, f"{told} ({LEAST * WORD // CHARACTER} characters in scripts without spaces)"]
    for split, share in brief.items():
        if share > 0.5:
            figure += f"; {share:.0%} of {split} stand in text too short to be asked ({why})"
            passed = passed and None
    return Check("overlap", passed, figure, details)


def _texts(documents: Iterator[Document]) -> Iterator[tuple[str, Iterable[str]]]:
    for document in documents:
        yield document.name, document.pieces


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
