"""What every test shares: shapes are checked, one thread, an empty cache of its own, no network."""

import os

# Two cores are shared with other workers; tiny models are slower on more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import install_import_hook

# Before anything of ours is imported: jaxtyping's shapes are checked by beartype in every call.
install_import_hook("lmlab", "beartype.beartype")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the whole session: stores are keyed by content, so tests cannot meet in it by accident."""
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
