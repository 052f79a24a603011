"""Tokens a second and peak memory of training, at the same losses: same first weights, same batches.

litgpt is not among the peers: it pins a huggingface_hub that is too old for the transformers which are (litgpt 0.5.13,
transformers 5.23), so the two cannot be installed together.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from . import training
from .generating import EOS, SIZES, gpt2_tokenizer, random_gpt2, small_tokenizer
from .harness import Case, Measure, Row, Sample, Settings
from .preparing import tokenizer_file
from .process import isolated
from .starting import TEXT

# What ours does beside training is not measured here.
ALONE = ["floors=false", "test=false", "logger=none", "evaluation.limit_tokens=64", "validation.limit_tokens=64",
         "validation.train_tokens=64", "callbacks.samples=null", "callbacks.progress=null", "training.log_every=1",
         "compile=auto", "precision=auto"]  # fmt: skip
SIZES["10M"] = {"n_layer": 6, "n_head": 5, "n_embd": 320, "n_positions": 256}
# Times as fast as without our own paths: no slower, by more than what two runs of one thing differ by.
NO_SLOWER = 0.97
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def lstm(settings: Settings) -> Iterator[Case]:
    """pytorch/examples' word language model: 650 wide, tied, 20 rows x 35."""
    shape = {"d_model": 24, "dropout": 0.0} if settings.quick else {"d_model": 650, "dropout": 0.5}
    words = ["experiment=examples_650_tied", f"model.d_model={shape['d_model']}"]
    words += [f"model.dropout_{where}={shape['dropout']}" for where in ("in", "between", "out")]
    yield from _recurrent(settings, "LSTM 650 tied, WikiText-2", words, 12, training.examples_lstm, shape,
                          "pytorch/examples' loop, fp32", ratio=3.0)  # fmt: skip


def awd(settings: Settings) -> Iterator[Case]:
    """AWD-LSTM's recipe for WikiText-2, 70 positions a step; 20 rows of its 80, for the sake of time."""
    words, shape = awd_words(settings, batch_size=20)
    yield from _recurrent(settings, "AWD-LSTM, WikiText-2", words, 5, training.awd_lstm, shape,
                          "AWD-LSTM's loop, fp32")  # fmt: skip


def awd_words(settings: Settings, batch_size: int) -> tuple[list[str], dict[str, Any]]:
    """Its recipe in our words, and the reference's arguments; rows of one length, so that steps can be compared."""
    d_embed, d_hidden = (12, 20) if settings.quick else (400, 1150)
    drop = {"dropout": 0.4, "dropout_h": 0.2, "dropout_i": 0.65, "dropout_e": 0.1, "weight_drop": 0.5}
    drop = dict.fromkeys(drop, 0.0) if settings.quick else drop
    words = ["experiment=awd_lstm_wikitext2", "batching.random_lengths=false", f"batching.batch_size={batch_size}"]
    ours = {"out": "dropout", "between": "dropout_h", "in": "dropout_i", "words": "dropout_e"}
    words += [f"model.dropout_{name}={drop[theirs]}" for name, theirs in ours.items()]
    words += [f"model.weight_drop={drop['weight_drop']}", f"model.d_embed={d_embed}", f"model.d_model={d_embed}"]
    words += [f"model.d_hidden={d_hidden}"]
    return words, {"shape": {"d_embed": d_embed, "d_hidden": d_hidden, "n_layers": 3, **drop}, "ar": 2.0, "tar": 1.0}


def _recurrent(settings: Settings, name: str, words: list[str], steps: int, peer: Callable[..., dict],
               shape: dict[str, Any], peer_is: str, ratio: float | None = None) -> Iterator[Case]:  # fmt: skip
    with settings.temporary() as folder:
        words = [*words, *ALONE, *_text(settings, Path(folder))]
        work, steps, told = _work(words, 3 if settings.quick else steps, Path(folder))
        memory = Measure("peak memory", "MB", ratio=None if ratio is None else 2.0)
        run = partial(isolated, peer, work=work, device=settings.device, **shape)
        yield _case(settings, name, words, told, run, peer_is, steps, memory, ratio)


def _text(settings: Settings, folder: Path) -> list[str]:
    if not settings.quick:
        return [f"corpus.path={settings.wikitext2}"]
    (folder / "text.txt").write_text(TEXT * 4)
    return ["corpus=files", f"corpus.train={folder}/text.txt", "corpus.split_by=share", f"cache_dir={folder}/cache"]


def gpt2_small(settings: Settings) -> Iterator[Case]:
    yield from _transformer(settings, "GPT-2 small", 2, 4)


def transformer_10m(settings: Settings) -> Iterator[Case]:
    yield from _transformer(settings, "10M", 8, 10)


def _transformer(settings: Settings, size: str, batch_size: int, steps: int) -> Iterator[Case]:
    """Windows of 256 tokens of the speeches; no dropout, so that losses can be compared one by one."""
    with settings.temporary() as folder:
        weights = Path(folder) / "weights"
        if settings.quick:
            tokenizer, size = small_tokenizer(), "quick"
        elif size == "10M":
            import tokenizers

            tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file(Path(folder), settings)))
            tokenizer.add_special_tokens([EOS])
        else:
            tokenizer = gpt2_tokenizer()
        random_gpt2(weights, size, tokenizer, **NO_DROPOUT)
        words = [f"init_from=hf:{weights}", f"batching.batch_size={batch_size}", *training.ADAMW, *ALONE]
        words += [f"batching.seq_len={32 if settings.quick else 256}"]
        words += _text(settings, Path(folder)) if settings.quick else []
        work, steps, told = _work(words, 3 if settings.quick else steps, Path(folder))
        peer = partial(isolated, training.transformers_trainer, work=work, weights=str(weights), device=settings.device)
        name = {"10M": "Transformer 10M, BPE 8k, context 256", "GPT-2 small": "GPT-2 small, 2 rows of 256"}
        yield _case(settings, name.get(size, size), words, told, peer, "transformers' Trainer, fp32", steps,
                    Measure("peak memory", "MB"), 4.0)  # fmt: skip


def plain_vs_auto(settings: Settings) -> Iterator[Case]:
    """The same recipe without any path of our own, on one thread and on two: is there one that makes it slower?"""
    tied = ["experiment=examples_650_tied"]
    small = ["model=gpt2", "model.n_layers=6", "model.n_heads=5", "model.d_model=320", "model.max_context=256",
             "model.dropout=0.0", "tokenizer=bpe", "tokenizer.vocab_size=8192", "batching.batch_size=8",
             "batching.seq_len=256", *training.ADAMW]  # fmt: skip
    if settings.quick:
        tied += ["model.d_model=24", *(f"model.dropout_{where}=0.0" for where in ("in", "between", "out"))]
        small += ["model.n_layers=1", "model.n_heads=2", "model.d_model=16", "model.max_context=32",
                  "batching.seq_len=32", "tokenizer.vocab_size=300"]  # fmt: skip
    with settings.temporary() as folder:
        for name, words, rows, length in (
            ("LSTM 650 tied, WikiText-2", [*tied, *_text(settings, Path(folder))], 20, 35),
            ("Transformer 10M", [*small, *(_text(settings, Path(folder)) if settings.quick else [])], 8,
             32 if settings.quick else 256),
        ):  # fmt: skip
            yield from _by_threads(settings, name, [*words, *ALONE], {"tokens_a_step": rows * length})


def _by_threads(settings: Settings, name: str, words: list[str], told: dict[str, Any]) -> Iterator[Case]:
    steps = 3 if settings.quick else 10
    words = [*words, f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    for n in (1, 2) if settings.device == "cpu" else (1,):
        chosen = [*words, f"threads={n}"]
        plain = [*chosen, "kernels=plain", f"trainer={'cpu' if settings.device == 'cpu' else 'gpu'}"]
        yield _case(settings, f"{name}, {n} thread{'s' * (n > 1)}", chosen, told,
                    partial(isolated, training.ours, overrides=plain), "the same with kernels=plain", steps,
                    Measure("peak memory", "MB"), NO_SLOWER)  # fmt: skip


def _work(words: list[str], steps: int, folder: Path) -> tuple[str, int, dict[str, Any]]:
    words += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    work = str(folder / "work.pt")
    return work, steps, isolated(training.write_work, overrides=words, steps=steps, path=work)


def _case(settings: Settings, name: str, words: list[str], told: dict[str, Any], peer: Callable[[], dict],
          peer_is: str, steps: int, memory: Measure, ratio: float | None) -> Case:  # fmt: skip
    words = [*words, f"trainer={'cpu' if settings.device == 'cpu' else 'gpu'}"]

    def sample(done: dict[str, Any]) -> Sample:
        # The first step also allocates.
        seconds = median(b - a for a, b in zip(done["steps"], done["steps"][1:], strict=False))
        values = {"tokens a second": told["tokens_a_step"] / seconds, "peak memory": done["peak_mb"]}
        return Sample(values, {"losses": done["losses"], **told})

    measures = (Measure("tokens a second", "tokens/s", "higher", ratio=ratio), memory)
    return Case(name, measures, "lmlab train, precision=auto", lambda: sample(isolated(training.ours, overrides=words)),
                peer_is, lambda: sample(peer()), same=partial(close, steps=steps, exact=settings.quick))  # fmt: skip


def close(ours: dict, peer: dict, steps: int, exact: bool) -> None:
    """As many steps; the losses one by one in a quick run (fp32, no dropout), else their means within a twentieth."""
    assert len(ours["losses"]) == len(peer["losses"]) == steps
    if exact:
        for a, b in zip(ours["losses"], peer["losses"], strict=True):
            assert abs(a - b) < 1e-4, (ours["losses"], peer["losses"])
    assert abs(fmean(ours["losses"]) / fmean(peer["losses"]) - 1) < 0.05, (ours["losses"], peer["losses"])


ROWS = (
    Row("lstm_650", "training an LSTM, 20 rows of 35", lstm, needs=("wikitext2",)),
    Row("awd_lstm", "training an AWD-LSTM, 20 rows of 70", awd, needs=("wikitext2",)),
    Row("gpt2_small", "training GPT-2 small", gpt2_small),
    Row("transformer_10m", "training a Transformer, 8 rows of 256", transformer_10m),
    Row("plain_vs_auto", "training with our own paths and without", plain_vs_auto, needs=("wikitext2",)),
)
