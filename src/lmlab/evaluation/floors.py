"""The floors under every table: the unigram and the Kneser-Ney 5-gram, counted on the same tokens."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.data.cache import whole_file
from lmlab.data.store import Split, Store
from lmlab.errors import full_disk
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.protocol import VERSIONS, Protocol, batches
from lmlab.models.ngram import NGramLM
from lmlab.seal import seal, unseal

log = logging.getLogger("lmlab")

ORDERS = {"unigram": 1, "kneser_ney_5": 5}
# Raised when counting or smoothing changes.
IDENTITY = 1
PLAIN = Protocol(VERSIONS["token"], "carried", 1, None, None, "32", None)


def keep(path: Path, write: Callable[[Path], Any]) -> None:
    """Write what can be counted again whole, or, into a cache that we may not write into, not at all."""
    try:
        with whole_file(path) as beside:
            write(beside)
    except OSError as error:
        if full_disk(error) is not None:
            raise
        log.debug("could not write %s (%s): it will be counted again", path, error)


def floors_protocol(protocol: Protocol) -> Protocol:
    """Theirs beside a model's: the same tokens at the same charges, in one lane, as they look back a few words only."""
    return PLAIN.now(limit_tokens=protocol.limit_tokens, unknown=protocol.unknown)


def floors(
    store: Store, parts: Mapping[str, Split] | Sequence[str], protocol: Protocol = PLAIN, train: Split | None = None
) -> dict[str, dict[str, Any]]:
    """{floor: {split: likelihood}} of these splits, fitted on what the model was trained on and kept beside the store.

    parts: names of the store's splits, or, where the model's protocol charges for <unk> or has a limit, these splits as
    it reads them: both hold for the floors, too. train: the end of the store's train split that it was trained on;
    None: all of it.
    """
    whole = store.split("train")
    train = whole if train is None else train
    parts = parts if isinstance(parts, Mapping) else {name: store.split(name) for name in parts}
    ours = floors_protocol(protocol)
    path = store.path / f"floors-{IDENTITY}.json"
    try:
        found = json.loads(unseal(path.read_text(encoding="utf-8")))
        known = {name: dict(found[name]) for name in ORDERS}
    except (OSError, ValueError, TypeError, KeyError):
        known = {name: {} for name in ORDERS}
    # Counted on all of train, and under the plain protocol, a split is known by its name.
    how = ([] if ours == PLAIN else [ours.name]) + ([] if len(train) == len(whole) else [f"of {len(train)} tokens"])
    keys = {split: " ".join([split, *how]) for split in parts}
    missing = [s for s in parts if any(keys[s] not in known[name] for name in ORDERS)]
    if missing:
        for name, order in ORDERS.items():
            model = NGramLM(vocab_size=store.tokenizer.vocab_size, order=order)
            model.fit(train.ids, store.tokenizer.start_id)
            for split in missing:
                rows = batches(parts[split], ours, store.tokenizer.start_id, batch_size=1, chunk=4096)
                known[name][keys[split]] = evaluate(model, rows, ours.precision).as_dict()
        keep(path, lambda beside: beside.write_text(seal(json.dumps(known, indent=1)), encoding="utf-8"))
    return {name: {split: known[name][keys[split]] for split in parts} for name in ORDERS}
