"""The one tokenizer.json: Hugging Face's layout, with a note of ours inside its model."""

import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1
# Hugging Face's reader refuses unknown keys at the top but passes over them inside "model".
NOTE = "lmlab"


def spec(
    model: dict[str, Any], kind: str, specials: dict[str, int], *, note: dict[str, Any] | None = None, **parts: Any
) -> dict[str, Any]:
    """A whole tokenizer.json; `parts` are its normalizer, pre_tokenizer and decoder."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in specials.items()],
        "normalizer": parts.get("normalizer"),
        "pre_tokenizer": parts.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": parts.get("decoder"),
        "model": {NOTE: {"format": FORMAT, "kind": kind, **(note or {})}, **model},
    }


def dumps(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def write(text: str, path: str | Path) -> None:
    """All of it or nothing: a reader never sees half a tokenizer."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    # One that lies there may be a stranger's link: it is not written through.
    part.unlink(missing_ok=True)
    try:
        with part.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The document and our note in it, None where another tool wrote it. Raises ValueError on a damaged file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}: `lmlab prepare` makes it, and every run keeps a copy")
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
        note = document["model"].get(NOTE)
        written = FORMAT if note is None else note.get("format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error
    if written != FORMAT:
        raise ValueError(f"{path} has format {written!r}, this lmlab reads {FORMAT}: use the version that wrote it")
    return document, note


def damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is damaged or no tokenizer.json ({type(error).__name__}: {error}): "
        "copy it again from where it came, or delete it and run `lmlab prepare`"
    )


def in_order(vocab: dict[str, int], specials: dict[str, int]) -> list[str]:
    """The entries of a vocabulary after its specials, which must come first, and no id may be missing."""
    names = sorted(vocab, key=vocab.__getitem__)
    if [vocab[name] for name in names] != list(range(len(names))) or names[: len(specials)] != list(specials):
        raise ValueError(f"the vocabulary must number its entries from 0, beginning with {list(specials)}")
    return names[len(specials) :]
