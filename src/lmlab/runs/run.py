"""One run on disk, to be used: score, generate, evaluate."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import nn

from lmlab.config import BUILT_FROM, check_targets, conf_dir, plain
from lmlab.config import cache_dir as cache_at
from lmlab.errors import check_text
from lmlab.experiment import build_model
from lmlab.instantiate import instantiate
from lmlab.models.kernels import check, using
from lmlab.run_directory import RunDirectory, check_tokenizer
from lmlab.run_directory.train_log import not_finite
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
    kernels: 'plain' measures, scores and writes by PyTorch's own operations alone. cache_dir: where token stores are
    and are made; the run's own config, which may be a stranger's, is not asked.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        checkpoint: str = "best",
        device: str = "cpu",
        allow_targets: Iterable[str] = (),
        kernels: str = "auto",
        cache_dir: str | os.PathLike | None = None,
    ):
        if checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint={checkpoint} must be one of {', '.join(CHECKPOINTS)}")
        self.directory = RunDirectory(path)
        self.path, self.checkpoint, self.device = self.directory.path, checkpoint, device
        self.kernels, self.cache = check(kernels), cache_at(cache_dir)
        self.config = self.directory.config()
        self._allow_targets = tuple(allow_targets)
        for group in BUILT_FROM:
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
        path, decided = self.directory.tokenizer, self.config["decided"]
        try:
            found = load_tokenizer(path)
        except (ValueError, FileNotFoundError) as error:
            # The name alone: a stranger's config leads nowhere else.
            store = self.cache / "stores" / Path(decided["store"]).name
            try:
                found = load_tokenizer(store / path.name)
                check_tokenizer(store / path.name, decided)
            except (ValueError, FileNotFoundError):
                raise ValueError(
                    f"{path} is damaged or missing, and {store} has no copy: bring it again from where the run came, "
                    "or train the run anew under another run_dir"
                ) from error
            found.save(path)
            log.warning("%s was damaged or missing; it is made again from %s", path, store)
        # One that is whole and not the run's own may be somebody's only copy: it is not replaced.
        check_tokenizer(path, decided)
        return found

    @cached_property
    def model(self) -> nn.Module:
        """The trained model, in evaluation mode. Raises ValueError where tokenizer or checkpoint do not fit."""
        from lmlab.training.checkpoints import read, weights

        vocab_size, tokens = self.config["decided"]["vocab_size"], self.tokenizer.vocab_size
        # Weights from elsewhere may have rows that no token has.
        if tokens != vocab_size and not (tokens < vocab_size and self.config.get("init_from")):
            raise ValueError(
                f"{self.directory.tokenizer} has {tokens} tokens, the checkpoint {vocab_size}: "
                "they are not of one run; put the run's own tokenizer.json back"
            )
        path = self.directory.checkpoints / f"{self.checkpoint}.ckpt"
        state = weights(read(path))
        self._check_size(vocab_size, state, path)
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

    def _check_size(self, vocab_size: int, state: Mapping[str, torch.Tensor], path: Path) -> None:
        """Raises ValueError where the weights are of other shapes: a config's sizes may be what no memory holds."""
        try:
            with torch.device("meta"):
                shell = build_model(
                    self.config["model"], vocab_size, torch.ones(1, dtype=torch.long).expand(vocab_size)
                )
                shapes = {name: tensor.shape for name, tensor in shell.named_parameters()}
        except Exception:
            # Somebody's own class may compute while it is built; what is wrong with a config is said when it is built.
            return
        for name, shape in shapes.items():
            if name in state and state[name].shape != shape:
                told = f"{name} is {tuple(state[name].shape)}, not {tuple(shape)}"
                raise ValueError(f"{path} does not fit {self.path / 'config.yaml'}: {told}")

    @property
    def batch_size(self) -> int | None:
        """Lanes, windows or texts that are measured at once where no other number is asked for: as its validation."""
        return self.config["validation"]["batch_size"]

    @property
    def protocol(self) -> "Protocol":
        """How it is measured: as it was, in today's version."""
        from lmlab.evaluation.protocol import Protocol

        return Protocol(**self.config["decided"]["protocol"]).now()

    def resolve(self, evaluation: Mapping[str, Any], others: bool = False) -> "Protocol":
        """The protocol that a node as in conf/evaluation means for this run's model.

        One without a `_target_` says what differs from the run's own. Raises ValueError for lanes where there are none.
        others: other runs are asked the same, each in its own context; who asks them calls `check_lanes` on all.
        """
        from lmlab.evaluation.protocol import check_lanes, resolve

        if "_target_" in evaluation:
            return instantiate(evaluation)(model=self.model)
        own = self.protocol
        kept = {key: getattr(own, key) for key in ("policy", "precision", "lanes", "limit_tokens", "unknown")}
        # A model that carries its state sees as far as it can, and a window's stride goes with its length.
        if own.stride is not None and evaluation.get("max_context") is None:
            kept |= {"stride": own.stride, "max_context": own.max_context}
        found = resolve(model=self.model, **kept | dict(evaluation))
        if not others:
            check_lanes(evaluation, [found])
        return found

    def store(self, corpus: Mapping[str, Any] | None = None, whole: bool = False) -> Any:
        """The token store of the run's own text, or of another corpus under the run's tokenizer.

        whole: every byte of it is checked; what is found damaged is made again.
        """
        from lmlab.data.store import DamagedStore, Store, prepare, remove

        cache = self.cache
        if corpus is None:
            try:
                # The name alone: a stranger's config leads nowhere else.
                store = Store(cache / "stores" / Path(self.config["decided"]["store"]).name)
                try:
                    if whole:
                        store.verify()
                except DamagedStore as error:
                    # Others, who look less closely, would go on using it.
                    log.warning("%s", error)
                    remove(store.path)
                    raise
                return store
            except (FileNotFoundError, DamagedStore):
                made = self.config.get("cache_dir")
                hint = f" (its training had cache_dir={made})" if made and Path(made) != cache else ""
                log.info("the run's token store is not in %s%s; it is made again", cache, hint)
        text = self.own_corpus() if corpus is None else self.corpus(corpus)
        # Keyed by the tokenizer's own content: another run's tokenizer of the same recipe may differ.
        recipe = {"tokenizer": self.tokenizer.to_json()}
        return prepare(text, lambda documents: self.tokenizer, recipe, cache, progress=False)

    def text(self) -> tuple[Any, Any]:
        """The run's corpus, and what trains a tokenizer as its own was: None where that came from elsewhere."""
        elsewhere = self.config.get("init_from") or "source" in self.config["tokenizer"]
        return self.own_corpus(), None if elsewhere else instantiate(self.config["tokenizer"])

    def audit(self, quick: bool = False, passages: int = 3) -> list[Any]:
        """Whether its numbers can be trusted: `lmlab.evaluation.audit`'s checks. passages: shown of each kind."""
        from lmlab.evaluation import audit

        store, results = self.store(whole=not quick), self.results
        asked = (self.model, store, self.protocol, self.device, results["splits"] if results else {})
        with using(self.kernels):
            corpus, train_tokenizer = self.text()
            if quick:
                return audit.quick(*asked, trained_here=train_tokenizer is not None)
            return audit.full(*asked, corpus, train_tokenizer, shown=passages)

    def diagnose(self, fractions: Iterable[str | os.PathLike] = ()) -> Any:
        """Whether it is trained well enough: `lmlab.evaluation.diagnosis`, of an unfinished or failed run, too.

        fractions: directories of runs that differ from this one in train_share, or in the seed besides. Raises
        ValueError where one differs in more.
        """
        from lmlab.evaluation import published
        from lmlab.evaluation.curve import Facts
        from lmlab.evaluation.diagnosis import diagnose
        from lmlab.evaluation.protocol import Protocol, mean_charge
        from lmlab.runs.fractions import sizes_and_losses

        decided = self.config["decided"]
        if "total_steps" not in decided:
            raise ValueError(f"{self.path} holds a model that counts: it has no curve to diagnose")
        points = self.directory.points()
        if not points:
            raise ValueError(f"{self.path} has no curves.csv with points; train a run with this version of lmlab")
        store, results = self.store(), self.results or {}
        known = results.get("floors") or self.floors(["val"])["floors"]
        train = store.split("train").totals
        share = self.config.get("train_share", 1.0)
        failure = self.directory.failure()
        failure = failure if failure and not_finite(failure) else None
        facts = Facts.of(
            self.config,
            decided,
            {k: round(share * train[k]) for k in ("tokens", "bytes")},
            known,
            points,
            failure,
            mean_charge(self.part("val", None, self.protocol), self.protocol),
        )
        facts = replace(facts, best_step=results["training"].get("best_step") if results else None)
        found = diagnose(points, facts)
        if results and (target := published.read(self.config.get("published"))) is not None:
            told = target.distances(results["splits"], Protocol(**decided["protocol"]), results["training"])
            found = replace(found, distances=told)
        parts = [Run(path, allow_targets=self._allow_targets, cache_dir=self.cache) for path in fractions]
        return found.with_more_text(*sizes_and_losses(self, parts)) if parts else found

    def corpus(self, corpus: Mapping[str, Any] | None = None) -> Any:
        """The run's own text, or another one, to be read again."""
        return instantiate(self.config["corpus"] if corpus is None else corpus)

    def own_corpus(self) -> Any:
        """The text that it was trained on. Raises ValueError where that has changed since."""
        own = self.corpus()
        if own.fingerprint() != self.config["decided"]["fingerprint"]:
            raise ValueError(
                f"the text that {self.path} was trained on has changed, or this version reads or divides it in another "
                "way; put it back, or measure another: lmlab evaluate corpus=files corpus.test=PATH"
            )
        return own

    def part(self, split: str, corpus: Mapping[str, Any] | None, protocol: "Protocol") -> Any:
        """A split of the run's text or of another corpus, with what the protocol charges for its <unk>."""
        from lmlab.evaluation.spelling import charged

        store = self.store(corpus)
        if split not in store.splits:
            others = list(store.splits)
            raise ValueError(f"split={split}: this text has {', '.join(others)}; say split={others[-1]}")
        if protocol.unknown == "token":
            return store.split(split)
        train = (store if corpus is None else self.store(), self.corpus)
        return charged(store, split, protocol, lambda: self.corpus(corpus), train)

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
        from lmlab.evaluation.protocol import at_once, batches

        protocol = protocol or self.protocol
        part, fastest = self.part(split, corpus, protocol), at_once(self.model, self.device)
        rows = batches(part, protocol, self.tokenizer.start_id, batch_size or self.batch_size, at_once=fastest)
        with using(self.kernels):
            return evaluate(self.model, rows, protocol.precision, self.device)

    def unknown(self, split: str) -> int:
        """How many <unk> that cost no more than the token are among what `evaluate` scores of its own text."""
        from lmlab.evaluation.protocol import unknown

        return unknown(self.part(split, None, self.protocol), self.tokenizer.unk_id, self.protocol)

    def floors(self, splits: Iterable[str], protocol: "Protocol | None" = None) -> dict[str, Any]:
        """The unigram and the 5-gram on its own text's tokens: `floors` and `floors_protocol`, as in results.json.

        protocol: whose charges hold for them, too; None for the run's own.
        """
        from lmlab.evaluation.floors import floors, floors_protocol
        from lmlab.training.plan import train_part

        protocol, store = protocol or self.protocol, self.store()
        parts = {split: self.part(split, None, protocol) for split in splits}
        trained_on = train_part(store, self.config.get("train_share", 1.0))
        return {
            "floors": floors(store, parts, protocol, trained_on),
            "floors_protocol": floors_protocol(protocol).as_dict(),
        }

    def score(self, text: str, **options: Any) -> Any:
        """Log-probability of each token of a text: `lmlab.scoring.score_text`."""
        from lmlab.scoring import score_text

        # Before the model is read.
        check_text("text", text)
        with using(self.kernels):
            return score_text(self.model, self.tokenizer, text, **(defaults("score", "top", "eos") | options))

    def generate(self, prompt: str | Sequence[str] = "", **options: Any) -> list[Any]:
        """Continuations of one prompt, or a list of them for each of several: `lmlab.generation.generate`."""
        from lmlab.generation import Decoding, generate

        options = settle(defaults("generate", "batch_size", *(f.name for f in fields(Decoding))) | options)
        with using(self.kernels):
            if isinstance(prompt, str):
                return generate(self.model, self.tokenizer, [prompt], **options)[0]
            return generate(self.model, self.tokenizer, list(prompt), **options)

    def export(self, out: str | os.PathLike) -> list[Path]:
        """Write it as a folder that `transformers` loads, and return the files: `lmlab.interop.export.export`."""
        from lmlab.interop.export import export

        return export(out, self.config["model"], self.model.state_dict(), self.tokenizer)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, checkpoint={self.checkpoint!r})"


def defaults(verb: str, *keys: str) -> dict[str, Any]:
    """What the verb's YAML says of these keys: the same defaults in Python as on the command line."""
    stated = plain(OmegaConf.load(conf_dir() / f"{verb}.yaml"))
    return {key: stated[key] for key in keys}


def settle(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Decoding's settings with what null means filled in: drawing for one beam, the likeliest text for several."""
    temperature, top_p = decoding["temperature"], decoding["top_p"]
    if isinstance(temperature, str):
        raise ValueError(
            f"temperature={temperature} must be a number, or null for the default; only lmlab evaluate finds it itself"
        )
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
