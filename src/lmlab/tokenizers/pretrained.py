"""Somebody else's tokenizer: a tokenizer.json, or a Hugging Face name."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers
from lmlab.tokenizers import Tokenizer, bytelevel, document, load
from lmlab.tokenizers.subwords import Subwords
from lmlab.tokenizers.vocabulary import REPLACEMENT

# Tried in this order where nothing beside the file says which token ends or begins a text.
EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|im_end|>", "[SEP]")
BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[CLS]")
SPACE = "▁"  # SentencePiece's U+2581
# Pre-tokenizers that keep every character, however they cut; others do where they say so.
KEEPING = {"ByteLevel", "Digits", "FixedLength", "Metaspace", "UnicodeScripts"}
_BYTES = {f"<0x{b:02X}>": bytes([b]) for b in range(256)}


class PretrainedTokenizer(Subwords):
    """Keeps the file's ids, specials and normalisation; adds nothing around a text.

    Three ways to spell: byte-level (GPT-2), SentencePiece (Llama 2), and others (WordPiece) by asking Rust for pairs.
    """

    kind = "pretrained"

    def __init__(self, content: dict[str, Any], pieces: list[bytes] | None, **rest: Any):
        super().__init__(content, [b""] * _size(content) if pieces is None else pieces, **rest)
        self._by_pairs = pieces is None
        # A space that the tokenizer itself put before the text.
        self._strips = pieces is not None and _prefixes_space(self.rust, content)
        self.cuts_at_space = _is_gpt2(content)
        self.lossless = _is_lossless(content)
        self.lossy_steps = tuple(_lossy_steps(content))

    @classmethod
    def from_document(cls, content: dict[str, Any]) -> "PretrainedTokenizer":
        note = content["model"][document.NOTE]
        vocab = _vocab(content)
        eos_id, start_id = vocab[note["eos"]], vocab[note["bos"] or note["eos"]]
        specials = {t["content"]: t["id"] for t in content["added_tokens"] if t["special"]} | {note["eos"]: eos_id}
        unk_id = _unk_id(content)
        pieces = _spell(content, specials, unk_id)
        return cls(content, pieces, specials=specials, eos_id=eos_id, start_id=start_id, unk_id=unk_id)

    def to_bytes(self, token: int, previous: int | None) -> bytes:
        if self._by_pairs:
            return self._by_pair(token, previous)
        piece = self.pieces[token]
        return piece[1:] if self._strips and previous in (None, self.start_id) and piece[:1] == b" " else piece

    def _by_pair(self, token: int, previous: int | None) -> bytes:
        if token in self._names:
            return REPLACEMENT if token == self.unk_id else b""
        if previous is None or previous in self._names:
            return self.rust.decode([token]).encode()
        return self.rust.decode([previous, token])[len(self.rust.decode([previous])) :].encode()

    def token(self, id: SupportsIndex) -> str:
        return (self.rust.id_to_token(id) or "") if self._by_pairs else super().token(id)


def train(
    documents: Iterable[str], source: str, revision: str | None, eos_token: str | None, bos_token: str | None
) -> Tokenizer:
    """Read `source`; the documents are not looked at. A file that we wrote gives the kind that it holds.

    source: a tokenizer.json, a folder with one, or a Hugging Face name; `revision` is a branch, tag or commit of that.
    eos_token, bos_token: null takes what the tokenizer's own files say.
    """
    path = Path(os.path.expanduser(source))
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        _, note = document.read(file)
        return adopt(file, eos_token, bos_token) if note is None else _own(file, eos_token, bos_token)
    if not path.is_dir() and (source.endswith(".json") or source[:1] in "./~" or source.count("/") > 1):
        raise FileNotFoundError(
            f"no tokenizer at {source}: give tokenizer.source the path of a tokenizer.json, or a Hugging Face name"
        )
    content, named = _from_hugging_face(str(path) if path.is_dir() else source, revision)
    return _adopt(content, source, eos_token or named["eos"], bos_token or named["bos"])


def _own(file: Path, eos_token: str | None, bos_token: str | None) -> Tokenizer:
    """A tokenizer that lmlab has saved, as it was: read as somebody else's it would split or decode otherwise."""
    tokenizer = load(file)
    for key, name, own in (("eos_token", eos_token, tokenizer.eos_id), ("bos_token", bos_token, tokenizer.start_id)):
        if name is not None and tokenizer.specials.get(name) != own:
            raise ValueError(
                f"{key}={name!r}, but {file} is lmlab's own and has {tokenizer.token(own)!r} there: set {key}=null"
            )
    return tokenizer


def adopt(file: Path, eos_token: str | None = None, bos_token: str | None = None) -> PretrainedTokenizer:
    """A tokenizer.json that another tool wrote; the files that Hugging Face lays beside it name its <eos> and <bos>."""
    content, _ = document.read(file)
    named = _named_beside(file)
    return _adopt(content, str(file), eos_token or named.get("eos"), bos_token or named.get("bos"))


def _adopt(content: dict[str, Any], source: str, eos: str | None, bos: str | None) -> PretrainedTokenizer:
    try:
        known = _vocab(content)
        specials = [t["content"] for t in content["added_tokens"] if t["special"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise document.damaged(source, error) from error
    eos = eos or next((n for n in EOS_NAMES if n in specials), specials[0] if len(specials) == 1 else None)
    bos = bos or next((n for n in BOS_NAMES if n in specials), None)
    for key, name in (("eos_token", eos), ("bos_token", bos)):
        if name is not None and name not in known:
            raise ValueError(f"{key}={name!r} is no token of {source}; its specials are {specials}")
    if eos is None:
        raise ValueError(f"{source} does not say which token ends a text: set tokenizer.eos_token to one of {specials}")
    note = {"format": document.FORMAT, "kind": PretrainedTokenizer.kind, "eos": eos, "bos": bos}
    # BPE dropout is for the one who trains on it: here a text has one encoding.
    model = {**content["model"], **({"dropout": None} if "dropout" in content["model"] else {}), document.NOTE: note}
    try:
        return PretrainedTokenizer.from_document({**content, "model": model})
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise document.damaged(source, error) from error


def _named_beside(file: Path) -> dict[str, str]:
    """<eos> and <bos> from tokenizer_config.json or special_tokens_map.json, where they lie beside the file."""
    named: dict[str, str] = {}
    for other in ("special_tokens_map.json", "tokenizer_config.json"):
        path = file.with_name(other)
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            for key in ("eos", "bos"):
                value = config.get(f"{key}_token")
                if value:
                    named[key] = value if isinstance(value, str) else value["content"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise document.damaged(path, error) from error
    return named


def _from_hugging_face(name: str, revision: str | None) -> tuple[dict[str, Any], dict[str, str | None]]:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModuleNotFoundError(
            f"tokenizer.source={name} is no file, and Hugging Face names need transformers: pip install 'lmlab[hf]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"tokenizer.source={name} is neither a file here nor to be had from Hugging Face "
            f"({str(error).strip().splitlines()[0]}): where there is a network, run `hf download {name} "
            "tokenizer.json tokenizer_config.json --local-dir FOLDER` and set tokenizer.source=FOLDER"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ValueError(f"tokenizer.source={name} has no tokenizer.json ({type(tokenizer).__name__}): take another")
    return json.loads(backend.to_str()), {"eos": tokenizer.eos_token, "bos": tokenizer.bos_token}


def _vocab(content: dict[str, Any]) -> dict[str, int]:
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list):
        vocab = {name: i for i, (name, _) in enumerate(vocab)}
    return {**vocab, **{t["content"]: t["id"] for t in content["added_tokens"]}}


def _size(content: dict[str, Any]) -> int:
    # Ids may have gaps, and a model has a row for each.
    vocab = _vocab(content)
    last = max(vocab.values())
    if last > 2 * len(vocab) + 1_000:
        raise ValueError(f"it has {len(vocab):,} tokens, and one of them the id {last:,}")
    return last + 1


def _unk_id(content: dict[str, Any]) -> int | None:
    model = content["model"]
    if _is_lossless(content):
        return None
    return model["unk_id"] if "unk_id" in model else _vocab(content).get(model.get("unk_token"))


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or decoder, which may be a sequence."""
    if part is None:
        return []
    return part[name] if part["type"] == "Sequence" else [part]


def _is_gpt2(content: dict[str, Any]) -> bool:
    """Pre-tokenised by GPT-2's expression alone, perhaps with digits apart: text may be cut before white space."""
    *before, last = _steps(content["pre_tokenizer"], "pretokenizers") or [{"type": None}]
    return (
        content["normalizer"] is None
        and all(step["type"] == "Digits" for step in before)
        and last["type"] == "ByteLevel"
        and last.get("use_regex", True)
        and not last["add_prefix_space"]
        and all(token["special"] for token in content["added_tokens"])
    )


def _is_lossless(content: dict[str, Any]) -> bool:
    """Byte-level, with every byte, and nothing changed or dropped on the way."""
    steps = _steps(content["pre_tokenizer"], "pretokenizers")
    return (
        content["normalizer"] is None
        and bool(steps)
        and steps[-1]["type"] == "ByteLevel"
        and not steps[-1]["add_prefix_space"]
        and all(s["type"] == "Digits" or s.get("behavior") == "Isolated" for s in steps[:-1])
        and set(bytelevel.CHARACTERS) <= set(content["model"]["vocab"])
        and not any(token["lstrip"] or token["rstrip"] for token in content["added_tokens"] if not token["special"])
    )


def _lossy_steps(content: dict[str, Any]) -> list[str]:
    """Names of the steps after which two texts may be the same tokens, none of them <unk>.

    But for one space that is put before a text, unless it begins with one: a space a document is next to nothing.
    """
    model = content["model"]
    found = [step["type"] for step in _steps(content["normalizer"], "normalizers") if not _keeps(step)]
    cuts = _steps(content["pre_tokenizer"], "pretokenizers")
    for step in cuts:
        if step["type"] not in KEEPING and step.get("behavior", "Removed") == "Removed":
            found.append(step["type"])
    if model.get("type") == "BPE" and model.get("unk_token") is None:
        in_bytes = any(step["type"] == "ByteLevel" for step in [*_steps(content["normalizer"], "normalizers"), *cuts])
        needed = set(bytelevel.CHARACTERS) if in_bytes else set(_BYTES)
        if not (in_bytes or model.get("byte_fallback")) or not needed <= set(model["vocab"]):
            found.append("BPE without <unk>")
    if any(token["lstrip"] or token["rstrip"] for token in content["added_tokens"] if not token["special"]):
        found.append("added tokens that strip")
    return list(dict.fromkeys(found))


def _keeps(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return normalizer["pattern"] == {"String": " "} and normalizer["content"] == SPACE
    return normalizer["type"] in ("Prepend", "ByteLevel")


def _spell(content: dict[str, Any], specials: dict[str, int], unk_id: int | None) -> list[bytes] | None:
    """The bytes of each token, None where they depend on more than the token."""
    kinds = {step["type"] for step in _steps(content["decoder"], "decoders")}
    if "ByteLevel" in kinds:
        spell = bytelevel.to_bytes
    elif kinds & {"Metaspace", "ByteFallback"}:
        spell = _sentencepiece
    else:
        return None
    pieces = [b""] * _size(content)
    added = {t["content"] for t in content["added_tokens"]}
    for name, i in _vocab(content).items():
        if i == unk_id:
            pieces[i] = REPLACEMENT
        elif name not in specials:
            pieces[i] = name.encode() if name in added else spell(name)
    return pieces


def _sentencepiece(piece: str) -> bytes:
    return _BYTES.get(piece) or piece.replace(SPACE, " ").encode()


def _prefixes_space(backend: tokenizers.Tokenizer, content: dict[str, Any]) -> bool:
    """Whether decoding takes one space off the front, because encoding put it there."""
    word = next((i for name, i in _vocab(content).items() if len(name) > 1 and name[0] == SPACE != name[1]), None)
    return word is not None and not backend.decode([word], skip_special_tokens=False).startswith(" ")
