"""Runs under several protocols, or of several texts: their numbers stand apart, and none is better than another's."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

UNNAMED = "recorded before protocols had names"
SPELLED = "evaluation.unknown=spelled"
# Of a protocol's name: without it, <unk> that are counted, and the text.
PARTS = re.compile(r"(.*?)( with \d+ <unk>)?( over ([\d,]+ bytes of )?val( \(\w+\))?)?")
# Digits of a text's hash that a name shows.
DIGITS = 8
WINDOW = "evaluation=sliding evaluation.max_context=N"


def name(protocol: Mapping[str, Any] | None, unknown: int) -> str:
    """What numbers are comparable under. unknown: how many tokens of val are <unk>.

    Where each costs a token, and nothing for the word that it stands for, they are counted: another vocabulary leaves
    out other words.
    """
    told = protocol or {}
    counted = f" with {unknown} <unk>" if unknown and told.get("unknown", "token") == "token" else ""
    return told.get("name", UNNAMED) + counted


def of_results(results: Mapping[str, Any]) -> str:
    # Of val: test is scored for some runs alone.
    sums = results["splits"].get("val") or {}
    return name(results.get("protocol"), sums.get("unknown") or 0)


def text_of_results(results: Mapping[str, Any]) -> int | None:
    """Bytes of val; None where only its first tokens were scored."""
    limited = (results.get("protocol") or {}).get("limit_tokens") is not None
    return None if limited else (results["splits"].get("val") or {}).get("bytes")


def is_measured(column: str) -> bool:
    """Whether its numbers are an evaluation's, which mean something under its protocol alone."""
    return column.startswith(("val/", "test/")) or column == "train/eval_loss"


def apart(frame: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
    """{protocol: its runs}, in the table's order; runs that have none yet stand with the first.

    Where there are several texts, the protocol's name tells which; runs that tell no text stand with the first.
    """
    if "protocol" not in frame:
        return {"": frame}
    under = frame["protocol"].fillna("")
    texts = texts_of(frame)
    if len(set(texts) - {None}) > 1:
        told = [text is not None and one != "" for text, one in zip(texts, under, strict=True)]
        full = under.where(told) + [f" over {text}" for text in texts]
        first = full.groupby(under).first()
        under = full.fillna(under.map(first)).fillna(under)
    names = [one for one in under.unique() if one] or [""]
    return {one: frame[under.isin([one, ""] if one == names[0] else [one])] for one in names}


def texts_of(frame: "pd.DataFrame") -> list[str | None]:
    """What each run's val is called: by its bytes, and by its hash where these do not tell it; None: it tells neither.

    A run of before, which has no hash, is of the first text that has as many bytes; where that is none, it may be of
    the one text whose length nobody tells, which then has no name.
    """
    none = [None] * len(frame)
    hashes, sizes = (
        [None if v != v else v for v in frame[c]] if c in frame else none for c in ("val_text", "val_bytes")
    )
    # Of a text some runs may have scored the first tokens alone, which do not say how long it is.
    known = dict.fromkeys(text for text in hashes if text is not None)
    known |= {text: size for text, size in zip(hashes, sizes, strict=True) if None not in (text, size)}
    alike: dict[Any, list[str]] = {}
    for text, size in known.items():
        alike.setdefault(size, []).append(text)

    older = any(text is None and size not in (None, *known.values()) for text, size in zip(hashes, sizes, strict=True))
    nameless = older and list(known.values()).count(None) == 1

    def called(text: str | None, size: float | None) -> str | None:
        if text is None and size is None:
            return None
        size = size if text is None else known[text]
        if size is None and nameless:
            return None
        told = "val" if size is None else f"{size:,.0f} bytes of val"
        several = alike.get(size, [])
        if size is not None and len(several) < 2:
            return told
        return f"{told} ({(text or several[0])[:DIGITS]})"

    return [called(text, size) for text, size in zip(hashes, sizes, strict=True)]


def check(frame: "pd.DataFrame", metric: str) -> None:
    """Raise ValueError where the metric was measured under several protocols."""
    found = apart(frame[frame[metric].notna()]) if is_measured(metric) else {}
    if len(found) > 1:
        raise ValueError(f"{metric}: {incomparable(found)}")


def incomparable(names: Iterable[str]) -> str:
    """One line on several protocols: which they are, and what makes them one; of several texts, nothing does."""
    names = list(names)
    told = [PARTS.fullmatch(one).groups()[:3] for one in names]  # type: ignore[union-attr]
    contexts, unknown, texts = ({parts[i] for parts in told} for i in (0, 1, 2))
    ways = " ".join([WINDOW] * (len(contexts) > 1) + [SPELLED] * (len(unknown) > 1))
    kind = "protocols" if ways else "texts"
    line = f"{len(names)} {kind}, whose numbers are not comparable: {', '.join(names)}"
    if not ways:
        return line
    both = " of each text" if len(texts) > 1 else ""
    return (
        f"{line}; {ways} puts all{both} under one, "
        "given to lmlab train or sweep, or to lmlab compare A B for runs that are there"
    )
