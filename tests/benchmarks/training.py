"""One training run of a few steps in a process of its own: ours as users start it, and the peers on the same batches.

Each returns when its steps ended, their losses, and the most memory held until the last of them.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .awd import AWDLSTM, AWDLoop
from .process import clocked, own_peak_mb
from .reference import LSTMLoop, TiedLSTM


def ours(overrides: list[str]) -> dict[str, Any]:
    """`lmlab train` with a clock in it."""
    import lmlab

    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock.json"
        lmlab.train(lmlab.compose([*overrides, f"run_dir={folder}/run", clocked(clock)]))
        return json.loads(clock.read_text())


def write_work(overrides: list[str], steps: int, path: str) -> dict[str, Any]:
    """The run's first weights and batches, for a peer to read."""
    import lmlab
    from lmlab.experiment import plan
    from lmlab.initial import with_initial

    config, initial = with_initial(lmlab.compose(overrides))
    planned = plan(config, initial=initial)
    batches = [planned.batching.batch(step) for step in range(steps)]
    torch.save(
        {
            "weights": planned.model.state_dict(),
            "vocab_size": planned.model.vocab_size,
            "batches": [
                (b.inputs, b.targets, b.reset is None or bool(b.reset.all())) for b in batches
            ],
        },
        path,
    )  # fmt: skip
    return {
        "tokens_a_step": batches[0].n_targets,
        "parameters": planned.decided["n_params"],
        "steps_an_epoch": planned.batching.steps_per_epoch,
    }


def examples_lstm(work: str, d_model: int, dropout: float, device: str) -> dict[str, Any]:
    """pytorch/examples: --emsize 650 --nhid 650 --dropout 0.5 --tied"""
    given = torch.load(work, weights_only=True, mmap=True)
    model = TiedLSTM(given["vocab_size"], d_model, n_layers=2, dropout=dropout)
    model.load(given["weights"])
    batches = _copied(given["batches"])
    del given
    return _steps(LSTMLoop(model.to(device), lr=20.0, clip=0.25), batches, device)


def awd_lstm(work: str, shape: dict[str, Any], ar: float, tar: float, device: str) -> dict[str, Any]:
    given = torch.load(work, weights_only=True, mmap=True)
    model = AWDLSTM(given["vocab_size"], **shape)
    model.load(given["weights"])
    batches = _copied(given["batches"])
    del given
    loop = AWDLoop(model.to(device), lr=30.0, clip=0.25, ar=ar, tar=tar, weight_decay=1.2e-6)
    return _steps(loop, batches, device)


def _copied(batches: list) -> list:
    """Every tensor of a mapped file holds the whole mapping: a second copy of all weights in the peer's peak memory."""
    return [(inputs.clone(), targets.clone(), new_text) for inputs, targets, new_text in batches]


def _steps(loop: Any, batches: list, device: str) -> dict[str, Any]:
    told: dict[str, Any] = {"began_training": time.time(), "steps": [], "losses": []}
    for i, (inputs, targets, new_text) in enumerate(batches):
        told["losses"].append(loop.step(i, inputs.to(device), targets.to(device), new_text))
        told["steps"].append(time.time())
    return told | {"peak_mb": own_peak_mb()}


class Ordered(torch.utils.data.Dataset):
    """The rows of all batches, in their order, as transformers' models take them."""

    def __init__(self, batches: list):
        self.inputs = torch.cat([inputs for inputs, _, _ in batches])
        self.targets = torch.cat([targets for _, targets, _ in batches])

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        # Given both, the model shifts nothing itself: each row has as many targets as ours.
        return {"input_ids": self.inputs[i], "labels": self.targets[i], "shift_labels": self.targets[i]}


def transformers_trainer(work: str, weights: str, device: str, bf16: bool = False) -> dict[str, Any]:
    """transformers' GPT-2 under its Trainer, all as it comes; only optimizer settings and order are those of ours."""
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    given = torch.load(work, weights_only=True, mmap=True)
    batches = given["batches"]
    told: dict[str, Any] = {"steps": []}

    class Stamps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            told["began_training"] = time.time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            told["steps"].append(time.time())
            told["peak_mb"] = own_peak_mb()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=len(batches[0][0]), max_steps=len(batches), learning_rate=LR,
            lr_scheduler_type="constant", weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8,
            max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            train_sampling_strategy="sequential", remove_unused_columns=False, use_cpu=device == "cpu", bf16=bf16,
        )  # fmt: skip
        model = GPT2LMHeadModel.from_pretrained(weights, dtype=torch.float32)
        trainer = Trainer(model, arguments, train_dataset=Ordered(batches), callbacks=[Stamps()])
        trainer.train()
    told["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return told


# Of both sides of the Transformer rows.
LR = 3e-4
ADAMW = ["optimizer=adamw", f"optimizer.lr={LR}", "optimizer.betas=[0.9,0.95]", "optimizer.weight_decay=0.1",
         "schedule=constant", "training.clip_norm=1.0", "training.decay=weights"]  # fmt: skip
