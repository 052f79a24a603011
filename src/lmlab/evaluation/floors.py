"""The floors under every table: the unigram and the Kneser-Ney 5-gram, counted on the same tokens."""

import json
import os
from typing import Any

from lmlab.data.store import Store
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.protocol import VERSION, Protocol, batches
from lmlab.models.ngram import NGramLM

ORDERS = {"unigram": 1, "kneser_ney_5": 5}
# Raised when counting or smoothing changes.
IDENTITY = 1
# An n-gram looks back a few words only: one lane reads the text as a whole.
PROTOCOL = Protocol(VERSION, "carried", 1, None, None, "32", None)


def floors(store: Store, splits: list[str]) -> dict[str, dict[str, Any]]:
    """{floor: {split: likelihood}}, fitted on the store's train split and kept beside it."""
    path = store.path / f"floors-{IDENTITY}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {name: dict(found[name]) for name in ORDERS}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        known = {name: {} for name in ORDERS}
    missing = [s for s in splits if any(s not in known[name] for name in ORDERS)]
    if missing:
        for name, order in ORDERS.items():
            model = NGramLM(vocab_size=store.tokenizer.vocab_size, order=order)
            model.fit(store.split("train").ids, store.tokenizer.start_id)
            for split in missing:
                rows = batches(store.split(split), PROTOCOL, store.tokenizer.start_id, batch_size=1, chunk=4096)
                known[name][split] = evaluate(model, rows, PROTOCOL.precision).as_dict()
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(known), encoding="utf-8")
        os.replace(beside, path)
    return {name: {split: known[name][split] for split in splits} for name in ORDERS}
