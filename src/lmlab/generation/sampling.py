"""The decoding loop of many rows in lockstep: greedy or drawn at random."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lmlab.generation.decoding import NOT_A_NUMBER, Decoding, forbidden_ids
from lmlab.generation.filters import Scores, forbid, likeliest, penalise_repetition, sample
from lmlab.generation.row import Row, generator
from lmlab.models.carry import Carry, device_of

# Tokens of a prompt read at once: bounds the memory of attention, changes no result.
PREFILL = 1024


class Chooser:
    """Chooses the next token of every row, from logits that the filters have changed."""

    def __init__(self, model: nn.Module, tokenizer, decoding: Decoding, device: torch.device):
        self.decoding = decoding
        self._forbidden = forbidden_ids(model, tokenizer, decoding, device)

    def allow(self, scores: Scores, seen: Bool[Tensor, "B V"] | None) -> Scores:
        """Scores after the repetition penalty and without forbidden tokens."""
        if seen is not None:
            scores = penalise_repetition(scores, seen, self.decoding.repetition_penalty)
        return forbid(scores, self._forbidden)

    def choose(self, scores: Scores, generators: list[torch.Generator]) -> Int[Tensor, " B"]:
        """The likeliest token at temperature 0, one drawn by each row's generator otherwise."""
        d = self.decoding
        if d.temperature == 0:
            return likeliest(scores)
        uniforms = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        return sample(scores, uniforms, d.temperature, d.top_k, d.top_p, d.min_p)


def seen_tokens(rows: list[list[int]], decoding: Decoding, vocab_size: int, device) -> Bool[Tensor, "B V"] | None:
    """Which tokens each row holds, where a repetition penalty needs it."""
    if decoding.repetition_penalty in (None, 1):
        return None
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for flags, ids in zip(seen, rows, strict=True):
        flags[torch.tensor(ids, dtype=torch.long, device=device)] = True
    return seen


class Lockstep:
    """Rows that read and write together: one token a step each, forced while a prompt lasts, chosen afterwards."""

    def __init__(self, model, tokenizer, decoding: Decoding, eos_id: int | None, on_text: Callable | None):
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        self.eos_id, self.on_text = eos_id, on_text
        self.device = device_of(model)
        self.chooser = Chooser(model, tokenizer, decoding, self.device)

    def run(self, prompts: dict[int, list[int]], samples: range) -> dict[tuple[int, int], Row]:
        """Write `samples` for each prompt, given as number: ids; the rows by (prompt, sample).

        The model reads the shortest prompt's length of all prompts once, before the rows are multiplied.
        """
        start = self.tokenizer.start_id
        shared = 1 + min(map(len, prompts.values()))
        self.carry = Carry(self.model)
        known = [[start, *ids] for ids in prompts.values()]
        for i in range(0, shared, PREFILL):
            hidden = self._read([ids[i : min(i + PREFILL, shared)] for ids in known])
        self.carry.expand(len(samples))
        keys = [(p, s) for p in prompts for s in samples]
        self.generators = [generator(self.decoding.seed, *key) for key in keys]
        self.rows = [Row(self.tokenizer, prompts[p], self.decoding, self.eos_id, self.on_text) for p, _ in keys]
        for row, (p, _) in zip(self.rows, keys, strict=True):
            row.pending = prompts[p][shared - 1 :]
        self.seen = seen_tokens([prompts[p] for p, _ in keys], self.decoding, self.model.vocab_size, self.device)
        done = dict(zip(keys, self.rows, strict=True))
        self._write(hidden.repeat_interleave(len(samples), 0))
        return done

    def _write(self, hidden: Tensor) -> None:
        while True:
            self._choose(hidden)
            self._drop_finished()
            if not self.rows:
                return
            n = min(PREFILL, *(len(row.pending) for row in self.rows))
            tokens = [row.pending[:n] for row in self.rows]
            for row in self.rows:
                row.pending = row.pending[n:]
            hidden = self._read(tokens)

    def _read(self, tokens: list[list[int]]) -> Tensor:
        return self.carry.read(torch.tensor(tokens, device=self.device))[:, -1:]

    def _choose(self, hidden: Tensor) -> None:
        """Give a token to each row that has read all it knows."""
        open_rows = [i for i, row in enumerate(self.rows) if not row.pending]
        if not open_rows:
            return
        # All of them, as they are: an index of each step would be a tensor to make.
        index = slice(None)
        if len(open_rows) < len(self.rows):
            index = torch.tensor(open_rows, device=self.device)
        logits = self.model.head.logits(hidden[index])[:, 0].float()
        seen = None if self.seen is None else self.seen[index]
        ids = self.chooser.choose(self.chooser.allow(logits, seen), [self.generators[i] for i in open_rows])
        log_probs = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        if self.seen is not None:
            self.seen[open_rows, ids] = True
        for i, id, log_prob in zip(open_rows, ids.tolist(), log_probs.tolist(), strict=True):
            if log_prob != log_prob:
                raise ValueError(NOT_A_NUMBER)
            self.rows[i].push(id, log_prob)

    def _drop_finished(self) -> None:
        alive = [i for i, row in enumerate(self.rows) if row.stopped_because is None]
        if len(alive) == len(self.rows) or not alive:
            self.rows = [self.rows[i] for i in alive]
            return
        index = torch.tensor(alive, device=self.device)
        self.carry.keep(index)
        self.seen = None if self.seen is None else self.seen[index]
        self.rows = [self.rows[i] for i in alive]
        self.generators = [self.generators[i] for i in alive]
