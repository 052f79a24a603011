"""AWD-LSTM's training step in plain PyTorch, as github.com/salesforce/awd-lstm-lm has it (Merity et al. 2017):
written for comparison, nothing of lmlab is used in it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reference import Weights


class AWDLSTM(nn.Module):
    """Three layers tied to the embedding; dropout of words, of weights, and locked dropout everywhere else.

    dropout: of the last layer's output; dropout_h: between layers; dropout_i: of the embedding; dropout_e: of words;
    weight_drop: of the recurrent matrices.
    """

    def __init__(self, vocab_size: int, d_embed: int, d_hidden: int, n_layers: int, dropout: float, dropout_h: float,
                 dropout_i: float, dropout_e: float, weight_drop: float):  # fmt: skip
        super().__init__()
        self.encoder = nn.Embedding(vocab_size, d_embed)
        widths = [d_embed, *[d_hidden] * (n_layers - 1), d_embed]
        self.rnns = nn.ModuleList(nn.LSTM(a, b) for a, b in pairwise(widths))
        self.decoder = nn.Linear(d_embed, vocab_size)
        self.decoder.weight = self.encoder.weight
        self.dropout, self.dropout_h, self.dropout_i, self.dropout_e = dropout, dropout_h, dropout_i, dropout_e
        self.weight_drop = weight_drop

    def forward(self, inputs: Tensor, hidden: list | None) -> tuple[Tensor, list, Tensor, Tensor]:
        """(T, B) tokens; logits (T * B, V), the state, and the last layer's output before and after dropout."""
        x = locked(self.embedded(inputs), self.dropout_i if self.training else 0.0)
        after = []
        for i, rnn in enumerate(self.rnns):
            x, last = self.recur(rnn, x, hidden[i] if hidden else None)
            after.append(last)
            raw = x
            if i < len(self.rnns) - 1:
                x = locked(x, self.dropout_h if self.training else 0.0)
        dropped = locked(raw, self.dropout if self.training else 0.0)
        return self.decoder(dropped.view(-1, dropped.shape[-1])), after, raw, dropped

    def embedded(self, inputs: Tensor) -> Tensor:
        weight = self.encoder.weight
        if self.training and self.dropout_e:
            kept = weight.new_empty((weight.shape[0], 1)).bernoulli_(1 - self.dropout_e) / (1 - self.dropout_e)
            weight = kept * weight
        return F.embedding(inputs, weight)

    def recur(self, rnn: nn.LSTM, x: Tensor, hidden: tuple | None) -> tuple[Tensor, tuple]:
        weights = {
            "weight_hh_l0": F.dropout(rnn.weight_hh_l0, self.weight_drop, self.training),
        }
        return torch.func.functional_call(rnn, weights, (x, hidden))

    def load(self, weights: Weights) -> None:
        """Copy the weights of a tied LSTMLM of the same widths."""
        names = {
            "encoder.weight": "embedding.weight",
            "decoder.weight": "embedding.weight",
            "decoder.bias": "head.bias",
        }
        for i in range(len(self.rnns)):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                names[f"rnns.{i}.{kind}_l0"] = f"layers.{i}.{kind}_l0"
        self.load_state_dict({theirs: weights[ours] for theirs, ours in names.items()})


def locked(x: Tensor, p: float) -> Tensor:
    """One mask for all positions."""
    if not p:
        return x
    return x * (x.new_empty(1, *x.shape[1:]).bernoulli_(1 - p) / (1 - p))


class AWDLoop:
    """Its main.py: AR on the dropped output, TAR on the raw one, clipping, SGD with weight decay."""

    def __init__(self, model: AWDLSTM, lr: float, clip: float, ar: float, tar: float, weight_decay: float):
        self.model, self.clip, self.ar, self.tar = model.train(), clip, ar, tar
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
        self.hidden: list | None = None

    def step(self, step: int, inputs: Tensor, targets: Tensor, new_text: bool) -> float:
        self.hidden = None if new_text or self.hidden is None else [tuple(h.detach() for h in s) for s in self.hidden]
        self.optimizer.zero_grad()
        logits, self.hidden, raw, dropped = self.model(inputs.t().contiguous(), self.hidden)
        nll = F.cross_entropy(logits, targets.t().reshape(-1))
        loss = nll + self.ar * dropped.pow(2).mean() + self.tar * (raw[1:] - raw[:-1]).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return nll.item()
