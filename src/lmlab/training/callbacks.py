"""What looks at a run in training: samples of text, histograms, and a stop that leaves everything usable."""

import logging
import signal
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lmlab.generation import generate

log = logging.getLogger("lmlab")


def boards(trainer: Trainer) -> list[Any]:
    """The TensorBoard writers of this run."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


class Samples(Callback):
    """Text that the model writes at every validation, from a random generator of its own."""

    def __init__(
        self, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, temperature: float, top_k: int | None
    ):
        self.tokenizer, self.prompts = tokenizer, list(prompts)
        self.max_new_tokens, self.temperature, self.top_k = max_new_tokens, temperature, top_k

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not boards(trainer):
            return
        written = generate(
            pl_module.model,
            self.tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            seed=0,
        )
        text = "\n\n---\n\n".join(p + s.text for p, samples in zip(self.prompts, written, strict=True) for s in samples)
        for board in boards(trainer):
            # Four spaces: markdown then keeps lines and symbols as they are.
            board.add_text("samples", "\n".join("    " + line for line in text.splitlines()), pl_module.step)


class Histograms(Callback):
    """Weights, and the tokens' embeddings for the projector, at every validation."""

    def __init__(self, tokenizer: Any, n_embeddings: int = 2000):
        self.tokenizer, self.n_embeddings = tokenizer, n_embeddings

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for board in boards(trainer):
            for name, parameter in pl_module.model.named_parameters():
                board.add_histogram(f"weights/{name}", parameter.detach(), pl_module.step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        embedding = next((m for m in pl_module.model.modules() if isinstance(m, torch.nn.Embedding)), None)
        for board in boards(trainer) if embedding is not None else []:
            n = min(self.n_embeddings, embedding.num_embeddings)
            # The projector's table is tab-separated lines.
            labels = [repr(self.tokenizer.token(i)) for i in range(n)]
            board.add_embedding(embedding.weight[:n].detach(), labels, tag="embedding")


class GracefulStop(Callback):
    """The first Ctrl-C or SIGTERM ends the step, validates and saves; the second one ends the process."""

    def __init__(self):
        self.interrupted = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def stop(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            log.info("stopping after this step; once more to leave at once")
            self.interrupted = True
            trainer.should_stop = True

        try:
            self._before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            # Not the main thread: whoever owns it owns its signals.
            self._before = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
