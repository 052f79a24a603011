"""Runs on disk: load one to use it, or many as a table."""

import gc
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import nn

from lmlab.config import cache_dir, check_targets, conf_dir, flatten, plain
from lmlab.experiment import build_model
from lmlab.instantiate import instantiate
from lmlab.run_directory import UNFINISHED, RunDirectory
from lmlab.tokenizers import load as load_tokenizer

if TYPE_CHECKING:
    import pandas as pd

    from lmlab.evaluation.protocol import Protocol
    from lmlab.metrics import Likelihood

log = logging.getLogger("lmlab")

CHECKPOINTS = ("best", "last")


class Run:
    """A stored run. Its model and tokenizer load when first used; nothing of it is executed.

    checkpoint: 'best' or 'last'. device: where the model goes. allow_targets: classes of your own that it may name.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        checkpoint: str = "best",
        device: str = "cpu",
        allow_targets: Iterable[str] = (),
    ):
        if checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint={checkpoint} must be one of {', '.join(CHECKPOINTS)}")
        self.directory = RunDirectory(path)
        self.path, self.checkpoint, self.device = self.directory.path, checkpoint, device
        self.config = self.directory.config()
        self._allow_targets = tuple(allow_targets)
        for group in ("model", "corpus", "tokenizer", "decided"):
            if not isinstance(self.config.get(group), dict):
                raise ValueError(f"{self.path / 'config.yaml'} is damaged: it has no {group}")
            check_targets(self.config[group], self._allow_targets)

    @property
    def results(self) -> dict[str, Any] | None:
        return self.directory.results()

    @property
    def curves(self) -> "pd.DataFrame":
        """One row a validation: step, tokens, val/loss, val/ppl, val/bpb, train/eval_loss, val/gap.

        Of an unfinished run, up to its last checkpoint. A model that only counts has no rows.
        """
        import pandas as pd

        results = self.results
        if results is not None:
            return pd.DataFrame(results["training"].get("history", []))
        from lmlab.training.checkpoints import read

        return pd.DataFrame(read(self.directory.last)["lmlab"]["history"])

    @cached_property
    def tokenizer(self) -> Any:
        """The run's own. Where its file is damaged or gone it is made again from the cache, whose store has a copy."""
        path = self.directory.tokenizer
        try:
            return load_tokenizer(path)
        except (ValueError, FileNotFoundError) as error:
            # The name alone: a stranger's config leads nowhere else.
            store = cache_dir(self.config.get("cache_dir")) / "stores" / Path(self.config["decided"]["store"]).name
            try:
                found = load_tokenizer(store / path.name)
            except (ValueError, FileNotFoundError):
                raise ValueError(
                    f"{path} is damaged or missing, and {store} has no copy: bring it again from where the run came, "
                    "or train the run anew under another run_dir"
                ) from error
        found.save(path)
        log.warning("%s was damaged or missing; it is made again from %s", path, store)
        return found

    @cached_property
    def model(self) -> nn.Module:
        """The trained model, in evaluation mode. Raises ValueError where tokenizer or checkpoint do not fit."""
        from lmlab.training.checkpoints import read, weights

        vocab_size = self.config["decided"]["vocab_size"]
        if self.tokenizer.vocab_size != vocab_size:
            raise ValueError(
                f"{self.directory.tokenizer} has {self.tokenizer.vocab_size} tokens, the checkpoint {vocab_size}: "
                "they are not of one run; put the run's own tokenizer.json back"
            )
        path = self.directory.checkpoints / f"{self.checkpoint}.ckpt"
        state = weights(read(path))
        # A head that sorts its words by frequency keeps the order in its buffers: any counts will do here.
        counts = torch.ones(vocab_size, dtype=torch.long)
        try:
            model = build_model(self.config["model"], vocab_size, counts)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{self.path / 'config.yaml'} is damaged: its model cannot be built: {error}") from error
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not fit {self.path / 'config.yaml'}: {str(error).splitlines()[-1]}"
            ) from error
        return model.to(self.device).eval()

    @property
    def protocol(self) -> "Protocol":
        from lmlab.evaluation.protocol import Protocol

        return Protocol(**self.config["decided"]["protocol"])

    def resolve(self, evaluation: Mapping[str, Any]) -> "Protocol":
        """The protocol that a node as in conf/evaluation means for this run's model."""
        return instantiate(evaluation)(model=self.model)

    def store(self, corpus: Mapping[str, Any] | None = None) -> Any:
        """The token store of the run's own text, or of another corpus under the run's tokenizer."""
        from lmlab.data.store import DamagedStore, Store, prepare

        cache = cache_dir(self.config.get("cache_dir"))
        decided = self.config["decided"]
        if corpus is None:
            try:
                return Store(cache / "stores" / decided["store"])
            except (FileNotFoundError, DamagedStore):
                log.info("the run's token store is not in %s; it is made again", cache)
        text = instantiate(self.config["corpus"] if corpus is None else corpus)
        if corpus is None and text.fingerprint() != decided["fingerprint"]:
            raise ValueError(
                f"the text that {self.path} was trained on has changed; give the text: corpus=files corpus.test=PATH"
            )
        # Keyed by the tokenizer's own content: another run's tokenizer of the same recipe may differ.
        recipe = {"tokenizer": self.tokenizer.to_json()}
        return prepare(text, lambda documents: self.tokenizer, recipe, cache, progress=False)

    def evaluate(
        self,
        split: str = "test",
        corpus: Mapping[str, Any] | None = None,
        protocol: "Protocol | None" = None,
        batch_size: int | None = None,
    ) -> "Likelihood":
        """Likelihood of a split of the run's own text, or of `corpus` (a node as in conf/corpus).

        protocol: None for the run's own, else as `resolve` gives it. batch_size: None for that of its validation.
        """
        from lmlab.evaluation.evaluate import evaluate
        from lmlab.evaluation.protocol import batches

        protocol = protocol or self.protocol
        store = self.store(corpus)
        if split not in store.splits:
            raise ValueError(f"split={split}: this text has {', '.join(store.splits)}")
        batch_size = batch_size or self.config["validation"]["batch_size"]
        rows = batches(store.split(split), protocol, self.tokenizer.start_id, batch_size)
        return evaluate(self.model, rows, protocol.precision, self.device)

    def score(self, text: str, **options: Any) -> Any:
        """Log-probability of each token of a text: `lmlab.scoring.score_text`."""
        from lmlab.scoring import score_text

        return score_text(self.model, self.tokenizer, text, **(defaults("score", "top", "eos") | options))

    def generate(self, prompt: str | Sequence[str] = "", **options: Any) -> list[Any]:
        """Continuations of one prompt, or a list of them for each of several: `lmlab.generation.generate`."""
        from lmlab.generation import Decoding, generate

        options = settle(defaults("generate", *(f.name for f in fields(Decoding))) | options)
        if isinstance(prompt, str):
            return generate(self.model, self.tokenizer, [prompt], **options)[0]
        return generate(self.model, self.tokenizer, list(prompt), **options)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, checkpoint={self.checkpoint!r})"


def defaults(verb: str, *keys: str) -> dict[str, Any]:
    """What the verb's YAML says of these keys: the same defaults in Python as on the command line."""
    stated = plain(OmegaConf.load(conf_dir() / f"{verb}.yaml"))
    return {key: stated[key] for key in keys}


def settle(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Decoding's settings with what null means filled in: drawing for one beam, the likeliest text for several."""
    temperature, top_p = decoding["temperature"], decoding["top_p"]
    if decoding["num_beams"] > 1:
        temperature = 0.0 if temperature is None else temperature
        top_p = None if top_p == 1 else top_p
    else:
        temperature = 0.8 if temperature is None else temperature
        top_p = 0.95 if top_p is None else top_p
    return {**decoding, "temperature": temperature, "top_p": top_p}


def load(path: str | os.PathLike, **options: Any) -> Run:
    """The run in a directory; see `Run` for the options."""
    return Run(path, **options)


def find(root: str | os.PathLike) -> Iterator[RunDirectory]:
    """Every run at or below `root`, in order of its path."""
    for folder, names, files in os.walk(root):
        names.sort()
        if "asked.yaml" in files:
            names.clear()
            yield RunDirectory(folder)


@contextmanager
def no_collection() -> Iterator[None]:
    """Reading makes a million objects and no cycles: looking for garbage among them takes a third of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def table(root: str | os.PathLike = "outputs") -> "pd.DataFrame":
    """One row a run: where, state, seed, sizes, best numbers, and every key in which the runs differ.

    A run that cannot be read has a row that says why.
    """
    import pandas as pd

    with no_collection():
        rows = [row(directory, root) for directory in find(root)]
    # Plain dicts: a thousand runs have a hundred keys each, most of them the same everywhere.
    asked = [told.pop("asked") for told in rows]
    keys = dict.fromkeys(key for told in asked for key in told)
    known = [told for told in asked if told]
    for key in keys:
        if len({repr(told.get(key)) for told in known}) > 1:
            for told, wanted in zip(rows, asked, strict=True):
                told[key] = wanted.get(key)
    return pd.DataFrame(rows)


def row(directory: RunDirectory, root: str | os.PathLike) -> dict[str, Any]:
    told: dict[str, Any] = {"run": os.path.relpath(directory.path, root), "state": "unfinished", "asked": {}}
    try:
        asked, results = directory.asked(), directory.results()
        told |= {"model": class_name(asked["model"]), "seed": asked["seed"]}
        if results is not None:
            told |= numbers(results)
    except (ValueError, OSError) as error:
        return told | {"state": f"damaged: {error}"}
    except (KeyError, TypeError, AttributeError) as error:
        return told | {"state": f"damaged: {directory.path} lacks {error}"}
    told["megabytes"] = round(size(directory.path) / 1e6, 1)
    return told | {"asked": differing_keys(asked)}


def numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    training = results["training"]
    told = {"state": training["stopped_because"], "parameters": results["model"]["parameters"]}
    told |= {k: training.get(k) for k in ("steps", "tokens", "seconds", "tokens_per_s")}
    for split, sums in results["splits"].items():
        told |= {f"{split}/{k}": sums[k] for k in ("bpb", "ppl", "nll")}
    return told


def differing_keys(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What may tell runs apart: leaves by dotted key, and each group's class; the model and seed have columns."""
    told = {}
    for key, value in flatten(asked).items():
        group, _, leaf = key.rpartition(".")
        if leaf == "_target_":
            told[group] = class_name({"_target_": value})
        elif not leaf.startswith("_") and key != "seed":
            told[key] = value
    told.pop("model", None)
    return told


def class_name(node: Mapping[str, Any]) -> str:
    """Of a node: its class, or the module of a function that trains."""
    *_, module, name = f"..{node['_target_']}".split(".")
    return module if name == "train" else name


def size(path: Path) -> int:
    """Bytes below a directory."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += size(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def prune(root: str | os.PathLike, keep: str, do_it: bool) -> list[tuple[Path, int]]:
    """What `keep` would free, as (path, bytes); removed when `do_it`.

    keep=best: last.ckpt of finished runs goes, which continuing them needs. keep=finished: unfinished runs go whole.
    keep=results: all checkpoints of finished runs go, numbers and curves stay.
    """
    rules = ("best", "finished", "results")
    if keep not in rules:
        raise ValueError(f"keep={keep} must be one of {', '.join(rules)}")
    freed = []
    for directory in find(root):
        results = directory.results()
        finished = results is not None and results["training"]["stopped_because"] not in UNFINISHED
        if keep == "finished":
            paths = [] if finished else [directory.path]
        else:
            paths = [directory.last] + ([directory.best] if keep == "results" else []) if finished else []
        for path in filter(Path.exists, paths):
            freed.append((path, size(path) if path.is_dir() else path.stat().st_size))
            if do_it:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed


def as_json(frame: "pd.DataFrame") -> str:
    return json.dumps(json.loads(frame.to_json(orient="records")), indent=2, ensure_ascii=False)
