"""Our training steps beside plain reference loops on the same batches: `python -m tests.benchmarks [RECIPE ...]`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lmlab
from lmlab.data.batching import Windows
from lmlab.experiment import Plan, plan

from .reference import GPT, GPTLoop, LSTMLoop, TiedLSTM
from .side_by_side import compare, machine, run, summary


def nanogpt_char_cpu(planned: Plan) -> GPTLoop:
    """nanoGPT's README: --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000."""
    model = GPT(planned.model.vocab_size, d_model=128, n_layers=4, n_heads=4, context=64, dropout=0.0)
    model.load(planned.model.state_dict())
    return GPTLoop(model, lr=1e-3, min_lr=1e-4, warmup=100, steps=2000, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0)


def examples_650_tied(planned: Plan) -> LSTMLoop:
    """pytorch/examples: --emsize 650 --nhid 650 --dropout 0.5 --tied.

    At this learning rate a difference of one rounding grows tenfold in about five of the first steps, between two
    copies of the reference too; what can be compared after some twenty is means.
    """
    model = TiedLSTM(planned.model.vocab_size, d_model=650, n_layers=2, dropout=0.5)
    model.load(planned.model.state_dict())
    return LSTMLoop(model, lr=20.0, clip=0.25)


@torch.no_grad()
def sampled_validation(planned: Plan, reference: GPTLoop, n_batches: int = 200) -> dict[str, float]:
    """nanoGPT's estimate, mean nats over random windows of val; 200 batches, where its README's run takes 20."""
    split, start_id = planned.store.split("val"), planned.store.tokenizer.start_id
    windows = Windows(split, start_id, seed=1, batch_size=12, seq_len=64, order="random", stride=None)
    ours, theirs = planned.model.eval(), reference.model.eval()
    sums = [0.0, 0.0]
    for i in range(n_batches):
        batch = windows.batch(i)
        hidden, _ = ours(batch.inputs, None)
        sums[0] += ours.head.nll(hidden, batch.targets).mean().item()
        sums[1] += theirs(batch.inputs, batch.targets).item()
    return {"ours": sums[0] / n_batches, "reference": sums[1] / n_batches}


# Recipe: its reference, steps and steps a segment by default.
RECIPES: dict[str, tuple[Callable[[Plan], Any], int, int]] = {
    "nanogpt_char_cpu": (nanogpt_char_cpu, 2000, 50),
    "examples_650_tied": (examples_650_tied, 200, 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"{' or '.join(RECIPES)}; all by default")
    parser.add_argument("--shakespeare", metavar="PATH", help="tiny Shakespeare's input.txt or its folder")
    parser.add_argument("--wikitext2", metavar="PATH", help="the folder with WikiText-2's train, valid and test")
    parser.add_argument("--steps", type=int, help="in place of each recipe's own number")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), metavar="FOLDER")
    options = parser.parse_args()
    if unknown := sorted(set(options.recipes) - set(RECIPES)):
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    paths = {"nanogpt_char_cpu": options.shakespeare, "examples_650_tied": options.wikitext2}
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.recipes or RECIPES:
        result = benchmark(name, paths[name], options.steps)
        path = options.out / f"{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written to {path}\n")


def benchmark(name: str, corpus_path: str | None, steps: int | None) -> dict[str, Any]:
    build, own_steps, segment = RECIPES[name]
    config = lmlab.compose([f"experiment={name}", "trainer=cpu", "compile=false", "logger=none"])
    # Without a path the corpus fetches itself.
    config.corpus.path = corpus_path
    planned = plan(config)
    reference = build(planned)
    print(f"{name}: {planned.decided['n_params']:,} parameters, fp32, {torch.get_num_threads()} threads", flush=True)
    result = {"name": name, "machine": machine()}
    result |= compare(*run(planned, reference, steps or own_steps, segment), segment)
    print(summary(result))
    if isinstance(reference, GPTLoop):
        result["sampled_val"] = sampled_validation(planned, reference)
        print("nats on val, sampled: ours {ours:.4f}, reference {reference:.4f}".format(**result["sampled_val"]))
    return result


if __name__ == "__main__":
    main()
