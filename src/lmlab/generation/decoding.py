"""How a text is chosen (`Decoding`) and what comes out (`Generated`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.errors import check_text
from lmlab.models import kernels
from lmlab.models import precision as precisions

# Unknown characters or words that a note names.
NAMED = 10
# Of length_penalty, either way: beyond it length ** length_penalty leaves the numbers there are.
MOST_PENALTY = 10.0
# What is said where nothing can be chosen.
NOT_A_NUMBER = "the model's logits are NaN: its weights are damaged, load an earlier checkpoint"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings of `generate`; what is left out changes nothing, None switches a filter off.

    temperature: 0 takes the likeliest token each time (greedy), or searches with beams.
    top_k, top_p, min_p, repetition_penalty: as in `transformers` (see `filters`); the penalty holds for tokens of
        the prompt too.
    num_samples: texts per prompt: drawn independently, or the best of the beams.
    num_beams: above 1 searches for the likeliest text, one prompt at a time.
    length_penalty: beams compare log P / length ** length_penalty; 0 compares sums, 1 means.
    stop: strings that end a text; they are looked for in what is generated and cut off.
    stop_at_eos: None ends at <eos> where it closes a document, and writes on where the tokenizer puts it for every
        newline (`word`).
    ban_unk: never write <unk>, which word models find likely and no reader wants; log_prob is unchanged by it.
    precision: `32`, or `bf16-mixed`, which reads half the memory at each step and rounds logits to three digits: texts
        chosen by a hair's breadth are then others, and log_prob is as exact as that.
    kernels: `auto` lays weights out anew while it writes, for two to four times the speed and twice their memory;
        `plain` does not, and computes by PyTorch's own operations alone.
    seed: with the numbers of prompt and sample it decides a text, whatever else is in the batch.
    """

    max_new_tokens: int
    temperature: float
    seed: int
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_samples: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    stop: Sequence[str] | None = ()
    stop_at_eos: bool | None = None
    ban_unk: bool = True
    precision: str | int = "32"
    kernels: str = "auto"

    def __post_init__(self):
        for name in ("max_new_tokens", "num_samples", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        self._check_filters()
        self._check_combinations()
        if isinstance(self.stop, str):
            raise ValueError(f"stop={self.stop!r} must be a list of strings: stop=[{self.stop!r}]")
        if self.stop is None:
            object.__setattr__(self, "stop", ())
        for text in self.stop:
            check_text("stop", text)
        if "" in self.stop:
            raise ValueError("stop=[''] would end every text at once: leave the empty string out")
        precisions.check("precision", self.precision)
        kernels.check(self.kernels)
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or more")

    def _check_filters(self) -> None:
        # Below 1e-6 float32 scores overflow, and greedy is what was meant.
        if self.temperature != 0 and not 1e-6 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or between 1e-6 and infinity")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1; null keeps all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1; null keeps all tokens")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must lie between 0 and 1; null keeps all tokens")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be above 0; 1 or null changes nothing")

        if not -MOST_PENALTY <= self.length_penalty <= MOST_PENALTY:
            raise ValueError(
                f"length_penalty={self.length_penalty} must lie between {-MOST_PENALTY:g} and {MOST_PENALTY:g}; "
                "0 compares sums, 1 means"
            )

    def _check_combinations(self) -> None:
        if self.num_beams == 1:
            if self.temperature == 0 and self.num_samples > 1:
                raise ValueError(
                    f"num_samples={self.num_samples} with temperature=0 would be the same text each time: "
                    f"set temperature=1 or num_beams={self.num_samples}"
                )
            return
        beams = f"num_beams={self.num_beams} searches for the likeliest text"
        if self.temperature != 0:
            raise ValueError(
                f"{beams}, temperature={self.temperature} draws at random: set temperature=0 or num_beams=1"
            )
        for name in ("top_k", "top_p", "min_p"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"{beams}, {name}={value} restricts drawing: set {name}=null or num_beams=1")
        if self.num_samples > self.num_beams:
            raise ValueError(
                f"num_samples={self.num_samples} must be at most num_beams={self.num_beams}: raise num_beams"
            )


@dataclass(frozen=True)
class Generated:
    """A text that a model wrote after a prompt.

    text: without the prompt, the stop string and <eos>. ids: every token chosen, also those of the stop string
    and <eos>. log_prob: ln P(ids | prompt) under the model itself, before any filter.
    stopped_because: "eos", "stop" or "max_new_tokens". notes: what the reader of the text should know.
    """

    text: str
    ids: tuple[int, ...]
    log_prob: float
    stopped_because: str
    notes: tuple[str, ...]


def forbidden_ids(model, tokenizer, decoding: Decoding, device: torch.device) -> Tensor:
    """Ids that are never chosen: <unk> where banned, and rows of the embedding beyond the vocabulary."""
    ids = list(range(tokenizer.vocab_size, model.vocab_size))
    if decoding.ban_unk and tokenizer.unk_id is not None:
        ids.append(tokenizer.unk_id)
    return torch.tensor(ids, dtype=torch.long, device=device)


def ending_id(tokenizer, decoding: Decoding) -> int | None:
    """The id that ends a text, if any does."""
    # A tokenizer that closes "...\n" with nothing more writes <eos> for the newline itself.
    ends = tokenizer.needs_eos("\n") if decoding.stop_at_eos is None else decoding.stop_at_eos
    return tokenizer.eos_id if ends else None


def unknown_note(tokenizer, prompt: str) -> str | None:
    """A note on the parts of a prompt that the vocabulary lacks."""
    lacking = tokenizer.unknown(prompt)
    if not lacking:
        return None
    more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
    return f"the vocabulary lacks {', '.join(map(repr, lacking[:NAMED]))}{more}: read as <unk>"
