"""A run's perplexity on each document of its own text, beside what the text's source says of the document."""

from dataclasses import replace
from typing import TYPE_CHECKING

from lmlab.data.corpora.document import Document
from lmlab.runs.replicates import interval

if TYPE_CHECKING:
    import pandas as pd

    from lmlab.runs.run import Run


def by_document(run: "Run", characters: int | None = None, batch_size: int = 16) -> "pd.DataFrame":
    """One row a document: split, name, what its source says of it (a year), tokens, bytes, nll, ppl, bpb.

    Each is scored by itself from its start. characters: only so many of each, so that long and short ones are judged
    with the same context; None for all. batch_size: how many at a time, which changes no number. Of a run under
    `evaluation.unknown=spelled` the letters of each <unk> are charged, as they are in its results.
    Raises ValueError where the text has changed since the run was trained.
    """
    import pandas as pd

    from lmlab.evaluation.spelling import letters_of
    from lmlab.scoring import score_many

    if characters is not None and characters < 1:
        raise ValueError(f"characters={characters} must be at least 1")
    corpus, _ = run.text()
    rows, texts = [], []
    for split in corpus.splits:
        for document in corpus.documents(split):
            rows.append({"split": split, "document": document.name} | document.meta)
            texts.append(beginning(document, characters))
    scores = score_many(run.model, run.tokenizer, texts, top=0, eos=False, batch_size=batch_size)
    spelled = run.protocol.unknown == "spelled" and run.tokenizer.unk_id is not None
    letters = letters_of(run.store(), lambda: corpus) if spelled else None
    for row, text, score in zip(rows, texts, scores, strict=True):
        found = score.likelihood
        if letters is not None:
            found = replace(found, nats=found.nats + letters(text))
        row |= {name: getattr(found, name) for name in ("tokens", "bytes", "nll", "ppl", "bpb")}
    return pd.DataFrame(rows)


def by_span(table: "pd.DataFrame", metric: str = "ppl", years: int = 10, level: float = 0.95) -> "pd.DataFrame":
    """Of `by_document`, years taken together: first, last, n documents, mean of the metric, and its interval."""
    import pandas as pd

    rows = []
    for first, documents in table.groupby(table["year"] // years * years):
        mean, low, high = interval(documents[metric].tolist(), level)
        rows.append((first, first + years - 1, len(documents), mean, low, high))
    return pd.DataFrame(rows, columns=["first", "last", "n", "mean", "low", "high"])


def beginning(document: Document, characters: int | None) -> str:
    """The first characters of a document; no more of it is read than that needs."""
    if characters is None:
        return "".join(document.pieces)
    text = ""
    for piece in document.pieces:
        text += piece[: characters - len(text)]
        if len(text) == characters:
            break
    return text
