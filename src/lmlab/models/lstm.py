"""Recurrent language models: LSTM, GRU and plain RNN, with AWD-LSTM's set of regularisers."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.models.dropout import Dropout, LockedDropout, check_rate, drop_weights, drop_words
from lmlab.models.head import Head
from lmlab.models.lstm_layer import LSTMWeights, is_quicker, is_step, lstm_layer, onednn_computes_in
from lmlab.models.tied import embed_tied
from lmlab.types import Hidden, State, Tokens

CELLS = {"lstm": (LSTMWeights, torch.lstm), "gru": (nn.GRU, torch.gru), "rnn_tanh": (nn.RNN, torch.rnn_tanh)}


class LSTMLM(nn.Module):
    """Stacked recurrent network over embedded tokens.

    The state is (h, c) for `lstm` and (h,) otherwise, each (B, n_layers, D), where D is the widest layer's width; a
    narrower layer uses the first columns. `hidden` is the last layer's output before output dropout.

    d_embed, d_hidden: width of the embedding and of all layers but the last; None for d_model. A tied matrix whose
        width is not d_model is reached by a projection in the head.
    dropout_words: whole words; dropout_in: the embedding's output; dropout_between: between layers;
    dropout_out: hidden, in the head; weight_drop: entries of the recurrent matrices (DropConnect).
    locked: one mask for all positions of a row (Gal & Ghahramani 2016) instead of a new one at each.
    init_range: embedding and head uniform in +-init_range, the head's biases zero; init_range_rnn: the same for all
        the layers' parameters; None leaves PyTorch's.
    Regularisers: Merity, Keskar & Socher 2017, "Regularizing and Optimizing LSTM Language Models".
    """

    recurrent = True
    max_context = None

    def __init__(
        self,
        vocab_size: int,
        head: Callable[..., Head],
        cell: str,
        n_layers: int,
        d_model: int,
        d_embed: int | None,
        d_hidden: int | None,
        tie_embeddings: bool,
        dropout_words: float,
        dropout_in: float,
        dropout_between: float,
        dropout_out: float,
        weight_drop: float,
        locked: bool,
        init_range: float | None,
        init_range_rnn: float | None,
        token_counts: Tensor | None = None,
    ):
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell={cell} must be one of {', '.join(CELLS)}")
        d_embed = d_model if d_embed is None else d_embed
        d_hidden = d_model if d_hidden is None else d_hidden
        sizes = {"vocab_size": vocab_size, "n_layers": n_layers, "d_model": d_model}
        for name, value in (sizes | {"d_embed": d_embed, "d_hidden": d_hidden}).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.vocab_size, self.d_model, self.n_layers, self.cell = vocab_size, d_model, n_layers, cell
        self.tied = tie_embeddings
        self.dropout_words = check_rate("dropout_words", dropout_words)
        self.weight_drop = check_rate("weight_drop", weight_drop)

        def dropout(name: str, p: float, time_dim: int) -> nn.Module:
            return LockedDropout(check_rate(name, p), time_dim) if locked else Dropout(check_rate(name, p))

        # Layers run time first, the order of the fused kernels; the head sees batch first.
        self.drop_in = dropout("dropout_in", dropout_in, 0)
        self.drop_between = dropout("dropout_between", dropout_between, 0)
        self.embedding = nn.Embedding(vocab_size, d_embed)
        self.widths = [d_hidden] * (n_layers - 1) + [d_model]
        module, _ = CELLS[cell]
        # One module per layer: dropout of our own goes between them, and widths may differ.
        self.layers = nn.ModuleList(
            module(d_in, d_out) for d_in, d_out in zip([d_embed, *self.widths], self.widths, strict=False)
        )
        self.head = head(
            d_model=d_model,
            vocab_size=vocab_size,
            embedding=self.embedding.weight if tie_embeddings else None,
            token_counts=token_counts,
            dropout=dropout("dropout_out", dropout_out, 1),
        )
        self._init(init_range, init_range_rnn)

    @torch.no_grad()
    def _init(self, init_range: float | None, init_range_rnn: float | None) -> None:
        if init_range is not None:
            for p in (*self.embedding.parameters(), *self.head.parameters()):
                p.uniform_(-init_range, init_range) if p.ndim > 1 else p.zero_()
        if init_range_rnn is not None:
            for p in self.layers.parameters():
                p.uniform_(-init_range_rnn, init_range_rnn)

    def forward(self, tokens: Tokens, state: State = None) -> tuple[Hidden, State]:
        x = (embed_tied if self.tied else F.embedding)(tokens.t(), self.embedding.weight)
        if self.training and self.dropout_words:
            x = drop_words(x, tokens.t(), self.vocab_size, self.dropout_words)
        x = self.drop_in(x)
        after = []
        for i, layer in enumerate(self.layers):
            if i:
                x = self.drop_between(x)
            before = self._layer_state(state, i, x)
            x, *last = self._run(layer, x, before)
            after.append(last)
        width = max(self.widths)
        # Kept in fp32 under autocast, so that a carried state has one type everywhere.
        parts = zip(*after, strict=True)
        return x.transpose(0, 1), tuple(
            torch.stack([_widen(h[0].to(self.embedding.weight.dtype), width) for h in part], 1) for part in parts
        )

    def _layer_state(self, state: State, i: int, x: Tensor) -> list[Tensor]:
        """State of layer i as kernels want it, (1, B, width) each."""
        if state is None:
            zeros = self.embedding.weight.new_zeros(1, x.shape[1], self.widths[i])
            return [zeros] * (2 if self.cell == "lstm" else 1)
        return [part[None, :, i, : self.widths[i]].contiguous() for part in state]

    def _run(self, layer: nn.RNNBase, x: Tensor, before: list[Tensor]) -> tuple[Tensor, ...]:
        """One layer over all positions: (T, B, D), then the last h (and c), (1, B, D) each."""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = [getattr(layer, name) for name in names]
        x = x.to(weights[0].dtype)  # under autocast the kernels cast all their arguments themselves
        dropping = self.training and self.weight_drop > 0
        if self.cell == "lstm" and not dropping and is_step(x):
            h, c = layer.step(x, *before)
            return h, h, c
        if dropping:
            weights[1] = drop_weights(weights[1], self.weight_drop)
        if self.cell == "lstm" and is_quicker(x, weights[1]):
            y, c = lstm_layer(x, *before, *weights)
            return y, y[-1:], c
        if dropping:
            weights = _flatten(weights)
        _, kernel = CELLS[self.cell]
        before = [part.to(x.dtype) for part in before]
        hx = before if self.cell == "lstm" else before[0]
        with _kernel_precision(x.device.type):
            # has_biases, layers, dropout, train, bidirectional, batch_first
            return kernel(x, hx, weights, True, 1, 0.0, self.training, False, False)


def leave_recurrence_whole() -> None:
    """From now on compiled steps call the recurrent kernels as they are: a compiler takes them apart, one position
    after the other, where cuDNN has one kernel for all."""
    # It would tell its own developers of each.
    warnings.filterwarnings(
        "ignore", r"Dynamo does not know how to trace the builtin `torch\._VariableFunctionsClass\."
    )
    for _, kernel in CELLS.values():
        torch._dynamo.disallow_in_graph(kernel)


def _kernel_precision(kind: str) -> AbstractContextManager:
    """Autocast as it is, but off where oneDNN has no kernel in its type: on older CPUs its LSTM fails in bf16."""
    if kind != "cpu" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return nullcontext() if onednn_computes_in(torch.get_autocast_dtype(kind)) else torch.autocast(kind, enabled=False)


def _widen(h: Tensor, width: int) -> Tensor:
    return F.pad(h, (0, width - h.shape[-1])) if h.shape[-1] < width else h


def _flatten(weights: list[Tensor]) -> list[Tensor]:
    """The same tensors as views of one buffer, in cuDNN's order: it copies (and warns) otherwise, at each call."""
    if not weights[0].is_cuda:
        return weights
    flat = torch.cat([w.flatten() for w in weights])
    parts = flat.split([w.numel() for w in weights])
    return [part.view_as(w) for part, w in zip(parts, weights, strict=True)]
