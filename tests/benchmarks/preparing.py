"""Encoding text once: MB/s and memory of `lmlab prepare` beside `datasets.map` with the same tokenizer."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import lmlab

from .harness import Case, Measure, Row, Sample, Settings
from .process import isolated, lmlab_run
from .starting import TEXT

# Bytes of a document, about; documents are shuffled paragraphs.
DOCUMENT = 4_000
PROCESSES = 2


def paragraphs(settings: Settings) -> list[str]:
    """Of the embedded speeches, and of the texts that options name."""
    if settings.quick:
        return TEXT.splitlines()
    from lmlab.data.corpora import Sotu

    corpus = Sotu(val_share=0.04, test_share=0.04)
    texts = [piece for split in corpus.splits for doc in corpus.documents(split) for piece in doc.pieces]
    for path in filter(None, (settings.shakespeare, settings.wikitext2)):
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        texts += [file.read_text(encoding="utf-8") for file in files]
    return [p for text in texts for p in text.split("\n") if p.strip()]


def write_text(path: Path, n_bytes: int, settings: Settings) -> int:
    """A .jsonl of documents with about `n_bytes` bytes of text; returns how many exactly. Written once."""
    told = path.with_suffix(".bytes")
    if path.exists() and told.exists():
        return int(told.read_text())
    random, found, written = np.random.default_rng(0), paragraphs(settings), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        while written < n_bytes:
            document: list[str] = []
            size = 0
            while size < DOCUMENT:
                document.append(found[random.integers(len(found))])
                size += len(document[-1]) + 1
            text = "\n".join(document)
            written += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    told.write_text(str(written))
    return written


def tokenizer_file(folder: Path, settings: Settings) -> Path:
    """A BPE of 8,192 entries, trained by us on the speeches and then somebody else's to both sides."""
    words = ["tokenizer=bpe", f"tokenizer.vocab_size={300 if settings.quick else 8192}"]
    if settings.quick:
        (folder / "text.txt").write_text(TEXT)
        words += ["corpus=files", f"corpus.train={folder}/text.txt", "corpus.split_by=share", f"cache_dir={folder}/bpe"]
    from lmlab.experiment import build_store

    store = build_store(lmlab.compose(words, "prepare"), progress=False)
    made = json.loads(store.tokenizer_path.read_text(encoding="utf-8"))
    path = folder / "tokenizer.json"
    # A note of ours about the kind of tokenizer, which other readers refuse.
    made["model"].pop("lmlab", None)
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


def map_datasets(text: str, tokenizer: str, cache: str) -> dict[str, Any]:
    """datasets as run_clm uses it: batched, in two processes, ids kept; then saved."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=tokenizer)
    raw = datasets.load_dataset("json", data_files=text, split="train", cache_dir=cache)
    encoded = raw.map(
        lambda rows: {"input_ids": fast(rows["text"])["input_ids"]}, batched=True, num_proc=PROCESSES,
        remove_columns=["text"],
    )  # fmt: skip
    encoded.save_to_disk(f"{cache}/encoded")
    return {"path": f"{cache}/encoded"}


def count_tokens(path: str) -> dict[str, Any]:
    import datasets
    import pyarrow.compute as pc

    lengths = pc.list_value_length(datasets.load_from_disk(path).data.column("input_ids"))
    return {"tokens": pc.sum(lengths).as_py(), "documents": len(lengths)}


def cases(n_bytes: int) -> Any:
    def make(settings: Settings) -> Iterator[Case]:
        size = 200_000 if settings.quick else n_bytes
        with settings.temporary() as folder:
            text = settings.scratch / ("quick" if settings.quick else "") / f"text_{size}.jsonl"
            exact = write_text(text, size, settings)
            tokenizer = tokenizer_file(Path(folder), settings)
            yield from _cases(Path(folder), text, exact, tokenizer)

    return make


def _cases(folder: Path, text: Path, n_bytes: int, tokenizer: Path) -> Iterator[Case]:
    words = ["corpus=files", f"corpus.train={text}", "corpus.val_share=0", "corpus.test_share=0"]
    words += ["tokenizer=pretrained", f"tokenizer.source={tokenizer}", "tokenizer.eos_token='<eos>'"]
    fresh, cache = folder / "store", folder / "datasets"

    def ours() -> Sample:
        shutil.rmtree(fresh, ignore_errors=True)
        finished = lmlab_run("prepare", *words, f"cache_dir={fresh}", "format=json", memory=True)
        report = json.loads(finished.out[finished.out.index("{") :])["splits"]["train"]
        tokens = report["tokens"] - report["documents"]  # each has an <eos> of its own
        values = {"text a second": n_bytes / 1e6 / finished.seconds, "peak memory": finished.peak_mb}
        return Sample(values, {"tokens": tokens, "documents": report["documents"], "seconds": finished.seconds})

    def peer() -> Sample:
        shutil.rmtree(cache, ignore_errors=True)
        done = isolated(map_datasets, True, text=str(text), tokenizer=str(tokenizer), cache=str(cache))
        values = {"text a second": n_bytes / 1e6 / done["seconds_in_all"], "peak memory": done["peak_mb"]}
        return Sample(values, count_tokens(done["path"]) | {"seconds": done["seconds_in_all"]})

    gigabyte = n_bytes >= 1e9
    measures = (
        Measure("text a second", "MB/s", "higher", ratio=2.0),
        Measure("peak memory", "MB", at_most=1_000 if gigabyte else None),
    )
    yield Case("whole process", measures, "lmlab prepare", ours, f"datasets.map, batched, {PROCESSES} processes", peer,
               same=same)  # fmt: skip

    from lmlab.experiment import build_store

    config = lmlab.compose([*words, f"cache_dir={fresh}"], "prepare")

    def open_ours() -> Sample:
        began = time.perf_counter()
        store = build_store(config, progress=False)
        n = len(store.split("train"))
        return Sample({"opening": 1e3 * (time.perf_counter() - began)}, {"tokens": n})

    def open_peer() -> Sample:
        import datasets

        began = time.perf_counter()
        rows = datasets.load_from_disk(f"{cache}/encoded")
        return Sample({"opening": 1e3 * (time.perf_counter() - began)}, {"documents": len(rows)})

    if not (fresh.exists() and cache.exists()):
        ours(), peer()
    open_ours(), open_peer()
    yield Case("opening what was prepared", (Measure("opening", "ms"),), "build_store, in a running process", open_ours,
               "datasets.load_from_disk", open_peer)  # fmt: skip


def same(ours: dict, peer: dict) -> None:
    """The same ids, as many of them: ours has an <eos> for each document beside them."""
    assert ours["documents"] == peer["documents"]
    assert ours["tokens"] == peer["tokens"]


ROWS = (
    Row("prepare_100mb", "preparing 100 MB of text, BPE 8k", cases(100_000_000)),
    Row("prepare_1gb", "preparing 1 GB of text, BPE 8k", cases(1_000_000_000), repetitions=1),
)
