"""Text in memory, as a corpus; and what lies where its stores are made."""

import json

from lmlab.data.corpora import Document

POEMS = ["One day\nI went  out.\n", "Déjà vu, 永和九年　岁在癸丑", "end"]


class Texts:
    """A corpus in memory: split -> documents -> pieces."""

    name = "texts"

    def __init__(self, **splits):
        self._splits = {k: [d if isinstance(d, list) else [d] for d in v] for k, v in splits.items()}
        self.splits = tuple(splits)
        self.read = 0

    def fingerprint(self):
        return json.dumps(self._splits)

    def provenance(self):
        return "in memory"

    def approximate_bytes(self):
        return None

    def documents(self, split):
        self.read += 1
        for i, pieces in enumerate(self._splits[split]):
            yield Document(f"{split}/{i}", iter(pieces), {"n": i})


def leftovers(folder):
    return [path.name for path in (folder / "stores").iterdir() if not path.name.endswith(".lock")]
