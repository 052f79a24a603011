"""What looks at a run in training: samples of text, histograms, and a stop that leaves everything usable."""

import logging
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lmlab.errors import TrainingFailed
from lmlab.generation import generate
from lmlab.training.checkpoints import agree

log = logging.getLogger("lmlab")


def boards(trainer: Trainer) -> list[Any]:
    """The TensorBoard writers of this run."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


class Samples(Callback):
    """Text that the model writes at every validation, from a random generator of its own.

    every_validation: false leaves it to results.json, of the best checkpoint.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        every_validation: bool,
    ):
        if not prompts:
            raise ValueError(
                "callbacks.samples.prompts=[] leaves nothing to continue; callbacks.samples=null writes none"
            )
        self.tokenizer, self.prompts = tokenizer, list(prompts)
        self.max_new_tokens, self.temperature, self.top_k = max_new_tokens, temperature, top_k
        self.every_validation = every_validation

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.every_validation or trainer.sanity_checking or not trainer.is_global_zero or not boards(trainer):
            return
        with _as_validated(trainer, pl_module):
            texts = self.write(pl_module.model, n=1)
        for board in boards(trainer):
            board.add_text("samples", "\n\n---\n\n".join(map(as_markdown, texts)), pl_module.step)

    def write(self, model: nn.Module, n: int) -> list[str]:
        """`n` texts for each prompt, the prompt included: always the same ones for the same weights."""
        written = generate(
            model,
            self.tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            num_samples=n,
            seed=0,
        )
        return [p + sample.text for p, samples in zip(self.prompts, written, strict=True) for sample in samples]


@contextmanager
def _as_validated(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Within, the model has the weights that validation measured, an averaging callback's too."""
    averaging = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, pl_module)
    try:
        with pl_module.measured_weights():
            yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, pl_module)


def as_markdown(text: str) -> str:
    """Indented by four spaces, which keeps lines and symbols as they are."""
    return "\n".join("    " + line for line in text.split("\n"))


class Histograms(Callback):
    """Weights at every validation, and at the end the tokens' embeddings for the projector."""

    # What a browser still turns smoothly; ids are in order of frequency, or of merging, so these are the common ones.
    N_EMBEDDINGS = 2000

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for board in boards(trainer):
            for name, parameter in pl_module.model.named_parameters():
                board.add_histogram(f"weights/{name}", parameter.detach(), pl_module.step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        embedding = next((m for m in pl_module.model.modules() if isinstance(m, torch.nn.Embedding)), None)
        for board in boards(trainer) if embedding is not None else []:
            n = min(self.N_EMBEDDINGS, self.tokenizer.vocab_size)
            # The projector's table is tab-separated lines.
            labels = [repr(self.tokenizer.token(i)) for i in range(n)]
            # A step of its own makes a folder of its own: a run that is continued does not write into an old one.
            board.add_embedding(embedding.weight[:n].detach(), labels, global_step=pl_module.step, tag="embedding")


class StartLoss(Callback):
    """trainer=debug: refuses a first loss that is not about ln V, and a batch that is not learnt at all.

    A model that knows nothing spreads its bets evenly; far above, it is badly initialised, far below, it sees its
    targets. trained: it starts from weights that know something, and only the upper bound holds.
    """

    TOLERANCE = 0.2

    def __init__(self, vocab_size: int, trained: bool):
        self.expected, self.trained = math.log(vocab_size), trained

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if pl_module.step != 1:
            return
        loss = pl_module.first_loss
        log.info("loss at the start %.3f, ln V %.3f", loss, self.expected)
        if loss > (1 + self.TOLERANCE) * self.expected:
            raise TrainingFailed(
                f"the loss starts at {loss:.3f}, more than {self.TOLERANCE:.0%} above ln V = {self.expected:.3f}: "
                "the model starts out sure of wrong answers; look at its initialisation (init_std, init_range)"
            )
        if not self.trained and loss < (1 - self.TOLERANCE) * self.expected:
            raise TrainingFailed(
                f"the loss starts at {loss:.3f}, more than {self.TOLERANCE:.0%} below ln V = {self.expected:.3f}: "
                "an untrained model cannot know that much; it sees its targets"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.step < pl_module.total_steps:
            return
        first, last = pl_module.first_loss, pl_module.latest["train/loss"]
        log.info("the loss on one batch went from %.3f to %.3f in %d steps", first, last, pl_module.step)
        if pl_module.step > pl_module.log_every and last >= first:
            raise TrainingFailed(
                f"one batch cannot be learnt: the loss went from {first:.3f} to {last:.3f} in {pl_module.step} steps; "
                "look at optimizer.lr"
            )


class GracefulStop(Callback):
    """The first Ctrl-C or SIGTERM ends the step, validates and saves; the second one ends the process.

    Rank 0 hears the signal, all ranks stop after the same step; so they do where a callback of rank 0's alone wants to
    stop, which says so by its `stopping`.
    """

    def __init__(self):
        self.interrupted = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def stop(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            log.info("stopping after this step; once more to leave at once")
            self.interrupted = True
            if trainer.world_size == 1:
                trainer.should_stop = True

        try:
            self._before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            # Not the main thread: whoever owns it owns its signals.
            self._before = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        wanted = self.interrupted or any(getattr(c, "stopping", False) for c in trainer.callbacks)
        if agree(trainer, pl_module, wanted):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
