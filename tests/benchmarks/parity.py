"""Our training steps beside plain reference loops on the same batches, in one process: do they learn the same?"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lmlab
from lmlab.data.batching import Windows
from lmlab.evaluation.evaluate import evaluate
from lmlab.experiment import Plan, plan
from lmlab.reproduction.ahead import ahead
from lmlab.training.fit import evaluation_batches
from lmlab.types import Batch, State

from .harness import Case, Measure, Row, Sample, Settings
from .reference import GPT, GPTLoop, LSTMLoop, TiedLSTM
from .side_by_side import compare, run, summary
from .starting import TEXT


def nanogpt_char_cpu(planned: Plan) -> GPTLoop:
    """nanoGPT's README: --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000."""
    shape = planned.config.model
    model = GPT(planned.model.vocab_size, shape.d_model, shape.n_layers, shape.n_heads, shape.max_context, dropout=0.0)
    model.load(planned.model.state_dict())
    return GPTLoop(model, lr=1e-3, min_lr=1e-4, warmup=100, steps=2000, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0)


def examples_650_tied(planned: Plan) -> LSTMLoop:
    """pytorch/examples: --emsize 650 --nhid 650 --dropout 0.5 --tied.

    At this learning rate a difference of one rounding grows tenfold in about five of the first steps, between two
    copies of the reference too; what can be compared after some twenty is means.
    """
    model = TiedLSTM(planned.model.vocab_size, planned.model.d_model, n_layers=2, dropout=0.5)
    model.load(planned.model.state_dict())
    return LSTMLoop(model, lr=20.0, clip=0.25)


@torch.no_grad()
def sampled_validation(planned: Plan, reference: GPTLoop, n_batches: int = 200) -> dict[str, float]:
    """nanoGPT's estimate, mean nats over random windows of val; 200 batches, where its README's run takes 20."""
    split, start_id = planned.store.split("val"), planned.store.tokenizer.start_id
    seq_len = planned.batching.seq_len
    windows = Windows(split, start_id, seed=1, batch_size=12, seq_len=seq_len, order="random", stride=None)
    ours, theirs = planned.model.eval(), reference.model.eval()
    sums = [0.0, 0.0]
    for i in range(n_batches):
        batch = windows.batch(i)
        hidden, _ = ours(batch.inputs, None)
        sums[0] += ours.head.nll(hidden, batch.targets).mean().item()
        sums[1] += theirs(batch.inputs, batch.targets).item()
    return {"ours": sums[0] / n_batches, "reference": sums[1] / n_batches}


def read(model: TiedLSTM, batch: Batch, state: State, precision: str) -> tuple[Tensor, State]:
    """What `evaluate` asks for, (B, T) nats and the state, in the reference's own arithmetic."""
    assert state is None or not batch.reset.any()
    log_probs, state = model(batch.inputs.t().contiguous(), state)
    nll = F.nll_loss(log_probs, batch.targets.t().reshape(-1), reduction="none")
    return nll.view(batch.targets.t().shape).t(), state


def validation(planned: Plan, reference: LSTMLoop, losses: dict[str, Sequence[float]]) -> dict[str, Any]:
    """Perplexity of both on the whole of val, as the recipe's number is measured, and where their training losses lead
    by the recipe's end, with the interval of that forecast."""
    sides = {"ours": (planned.model, {}), "reference": (reference.model, {"score": read})}
    lr, whole = planned.config.optimizer.lr, planned.config.published.steps
    found = {}
    for side, (model, how) in sides.items():
        nll = evaluate(model, evaluation_batches(planned)("val", limit_tokens=None), "32", **how).nll
        points = [{"step": i + 1, "train/loss": loss, "optim/lr": lr} for i, loss in enumerate(losses[side])]
        to_come = ahead(points, planned.decided, planned.config, planned.config, len(points), whole)
        found[side] = {"ppl": math.exp(nll)}
        if to_come is not None:
            gains = {"at_end": to_come["gain"], "at_best": to_come["high"], "at_worst": to_come["low"]}
            found[side] |= {name: math.exp(max(0.0, nll - gain)) for name, gain in gains.items()}
    return found


def told(validated: dict[str, Any]) -> str:
    """One line of `validation`."""
    sides = []
    for side, v in validated.items():
        end = ", at the end {at_end:.1f} ({at_best:.1f} to {at_worst:.1f})".format(**v) if "at_end" in v else ""
        sides.append(f"{side} {v['ppl']:.2f}{end}")
    return f"perplexity of val: {'; '.join(sides)}"


def cases(name: str, build: Callable[[Plan], Any], option: str, steps: int, segment: int, small: list[str]) -> Any:
    """small: what makes the recipe tiny for a quick run."""

    def make(settings: Settings) -> Iterator[Case]:
        with settings.temporary() as folder:
            words = [f"experiment={name}", "trainer=cpu", "compile=false", "logger=none", "precision=32"]
            if settings.quick:
                (Path(folder) / "text.txt").write_text(TEXT * 4)
                words += ["corpus=files", f"corpus.train={folder}/text.txt", "corpus.split_by=share", *small]
                words += [f"cache_dir={folder}/cache"]
            else:
                words += [f"corpus.path={getattr(settings, option)}"]
            n = 2 * segment if settings.quick else settings.steps or steps
            yield Case("a step beside the reference", (Measure("a step", "ms"),), f"experiment={name}, fp32",
                       peer_is="reference loop, fp32, same batches and first weights",
                       both=lambda: _both(plan(lmlab.compose(words)), build, n, segment))  # fmt: skip

    return make


def _both(planned: Plan, build: Callable[[Plan], Any], steps: int, segment: int) -> tuple[Sample, Sample]:
    reference = build(planned)
    result = compare(*run(planned, reference, steps, segment), segment)
    print(summary(result))
    if isinstance(reference, GPTLoop):
        result["sampled_val"] = sampled_validation(planned, reference)
        print("nats on val, sampled: ours {ours:.4f}, reference {reference:.4f}".format(**result["sampled_val"]))
    losses = result.pop("losses")
    if isinstance(reference, LSTMLoop):
        result["val"] = validation(planned, reference, losses)
        print(told(result["val"]))
    ms = result.pop("ms_per_step")
    ours, theirs = ({"losses": losses[side]} for side in ("ours", "reference"))
    return Sample({"a step": ms["ours"]}, result | ours), Sample({"a step": ms["reference"]}, theirs)


ROWS = (
    Row("nanogpt_char_cpu", "nanoGPT's recipe for a processor, losses compared",
        cases("nanogpt_char_cpu", nanogpt_char_cpu, "shakespeare", 2000, 50,
              ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_context=16"]),
        needs=("shakespeare",), repetitions=1),
    Row("examples_650_tied", "pytorch/examples' recipe, losses compared",
        cases("examples_650_tied", examples_650_tied, "wikitext2", 200, 10, ["model.d_model=16"]),
        needs=("wikitext2",), repetitions=1),
)  # fmt: skip
