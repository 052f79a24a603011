"""Models of a few tokens whose continuations can be worked out, and how the tests write with them."""

import math

import numpy as np
import torch
from torch import nn

from lmlab.generation import generate
from lmlab.tokenizers import Encoding
from lmlab.tokenizers.vocabulary import Vocabulary

NEUTRAL = {
    "max_new_tokens": 8,
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "repetition_penalty": None,
    "num_samples": 1,
    "num_beams": 1,
    "length_penalty": 1.0,
    "stop": (),
    "stop_at_eos": None,
    "ban_unk": True,
    "seed": 0,
}


class Letters(Vocabulary):
    """Pieces of text as tokens, after <eos> and <unk>; the longest piece that fits is taken."""

    kind = "letters"

    def __init__(self, *pieces: str):
        specials = {"<eos>": 0, "<unk>": 1}
        super().__init__([b"", b"?", *(piece.encode() for piece in pieces)], specials, eos_id=0, unk_id=1)

    def encode(self, text: str) -> Encoding:
        source, ids, ends, at = text.encode(), [], [], 0
        while at < len(source):
            fits = [i for i, piece in enumerate(self.pieces) if i > 1 and source.startswith(piece, at)]
            ids.append(max(fits, key=lambda i: len(self.pieces[i]), default=1))
            at += len(self.pieces[ids[-1]]) if fits else len(source[at:].decode()[0].encode())
            ends.append(at)
        return Encoding(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64))

    def to_json(self) -> str:
        return str(self.pieces)


class Head(nn.Module):
    """hidden is the logits."""

    def logits(self, hidden):
        return hidden

    def log_probs(self, hidden):
        return hidden.log_softmax(-1)

    def nll(self, hidden, targets):
        return -self.log_probs(hidden).gather(-1, targets[..., None])[..., 0]


class Table(nn.Module):
    """Logits looked up by the last two tokens (0 where there is none); counts the positions that it reads."""

    recurrent, max_context = True, None

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.vocab_size = self.d_model = logits.shape[-1]
        self.register_buffer("table", logits)
        self.head = Head()
        self.widths: list[tuple[int, ...]] = []

    @classmethod
    def bigram(cls, probs) -> "Table":
        logits = torch.tensor(probs).log()
        return cls(logits.expand(len(logits) + 1, -1, -1))

    def forward(self, tokens, state=None):
        self.widths.append(tuple(tokens.shape))
        past = torch.zeros(len(tokens), 1, dtype=torch.long) if state is None else state[0]
        words = torch.cat([past, tokens + 1], 1)
        return self.table[words[:, :-1], tokens], (words[:, -1:],)


class Recurrent(nn.Module):
    """A GRU, the state of which it overwrites in place."""

    recurrent, max_context = True, None

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = self.d_model = vocab_size
        self.embed = nn.Embedding(vocab_size, 16)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, vocab_size)
        self.head = Head()
        # Sharper than at the start, so that texts vary.
        nn.init.normal_(self.out.weight, std=2.0)

    def forward(self, tokens, state=None):
        hidden, last = self.gru(self.embed(tokens), None if state is None else state[0].transpose(0, 1).contiguous())
        last = last.transpose(0, 1)
        return self.out(hidden), (last if state is None else state[0].copy_(last),)


class Learned(nn.Module):
    """Learned positions: refuses to read past max_context."""

    recurrent, slides = False, False

    def __init__(self, vocab_size: int, max_context: int):
        super().__init__()
        self.vocab_size, self.max_context, self.d_model = vocab_size, max_context, vocab_size
        self.embed, self.positions = nn.Embedding(vocab_size, 16), nn.Embedding(max_context, 16)
        self.out = nn.Linear(16, vocab_size)
        self.head = Head()
        nn.init.normal_(self.out.weight, std=2.0)

    def forward(self, tokens, state=None):
        past = tokens[:, :0] if state is None else state[0] - 1
        text = torch.cat([past, tokens], 1)
        if text.shape[1] > self.max_context:
            raise ValueError(f"{text.shape[1]} tokens exceed max_context={self.max_context}")
        mixed = (self.embed(text) * self.positions.weight[: text.shape[1]]).cumsum(1)
        return self.out(mixed.tanh())[:, past.shape[1] :], (text + 1,)


ABC = Letters("a", "b", "c", "d", "ab")
FAMILIES = {
    "recurrent": lambda: Recurrent(7),
    "table": lambda: Table(torch.randn(8, 7, 7)),
    "learned": lambda: Learned(7, 8),
}


def write(model, prompts=("",), tokenizer=ABC, on_text=None, batch_size=None, **settings):
    return generate(model, tokenizer, prompts, on_text=on_text, batch_size=batch_size, **(NEUTRAL | settings))


def one(*args, **settings):
    return write(*args, **settings)[0][0]


def naive_greedy(model, prompt: str, n: int, banned=(1,)) -> list[int]:
    """Reads the whole text anew for each token; past learned positions in windows that move by half of them."""
    ids = [0, *ABC.encode(prompt).ids.tolist()]
    first, start = len(ids), 0
    window = None if getattr(model, "slides", True) else model.max_context
    while (len(ids) < first + n and ids[-1] != 0) or len(ids) == first:
        while window and len(ids) - start > window:
            start += window - window // 2
        logits = model.head.logits(model(torch.tensor([ids[start:]]))[0])[0, -1].detach()
        logits[list(banned)] = -math.inf
        ids.append(int(logits.argmax()))
    return ids[first:]
