"""Plain fp32 training loops of two published recipes, written for comparison: nothing of lmlab is used in them.

Each takes the starting weights from one of our models, under our names, and then batches of (B, T) tokens.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


class GPTBlock(nn.Module):
    """Attention and MLP behind their norms, no biases, as nanoGPT configures GPT-2."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads, self.p = n_heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(d_model, bias=False), nn.LayerNorm(d_model, bias=False)
        self.qkv, self.proj = nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.up, self.down = nn.Linear(d_model, 4 * d_model, bias=False), nn.Linear(4 * d_model, d_model, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm_1(x)).split(D, dim=2)
        q, k, v = (t.view(B, T, self.n_heads, D // self.n_heads).transpose(1, 2) for t in (q, k, v))
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        x = x + self.drop(self.proj(y.transpose(1, 2).contiguous().view(B, T, D)))
        # GPT-2's tanh form; nanoGPT has since taken the exact one.
        return x + self.drop(self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh")))


class GPT(nn.Module):
    """GPT-2's layout without biases; the output matrix is the embedding."""

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, n_heads: int, context: int, dropout: float):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, d_model), nn.Embedding(context, d_model)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(GPTBlock(d_model, n_heads, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model, bias=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean nats per token."""
        logits = self.logits(inputs)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    def logits(self, inputs: Tensor) -> Tensor:
        at = torch.arange(inputs.shape[1], device=inputs.device)
        x = self.drop(self.tokens(inputs) + self.positions(at))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)

    def initialise(self) -> None:
        """As nanoGPT: 0.02, the projections into the residual stream smaller."""
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                out = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * len(self.blocks)) if out else 0.02)

    def load(self, weights: Weights) -> None:
        """Copy the weights of a TransformerLM of the same layout."""
        ours = {"norm_1": "attention_norm", "qkv": "attention.qkv", "proj": "attention.out",
                "norm_2": "mlp_norm", "up": "mlp.up", "down": "mlp.down"}  # fmt: skip
        names = {"tokens": "embed", "positions": "position_embed", "norm": "norm"}
        for i in range(len(self.blocks)):
            names |= {f"blocks.{i}.{part}": f"blocks.{i}.{name}" for part, name in ours.items()}
        self.load_state_dict({f"{part}.weight": weights[f"{name}.weight"] for part, name in names.items()})


class GPTLoop:
    """nanoGPT's training step: AdamW, decay of all matrices, warm-up and cosine, clipping.

    fast: as it runs on a GPU, compiled, under bf16 autocast, with the fused optimizer.
    """

    def __init__(self, model: GPT, lr: float, min_lr: float, warmup: int, steps: int, betas: tuple[float, float],
                 weight_decay: float, clip: float, fast: bool = False):  # fmt: skip
        self.model, self.clip, self.fast = model.train(), clip, fast
        self.forward = torch.compile(model) if fast else model
        self.lr, self.min_lr, self.warmup, self.steps = lr, min_lr, warmup, steps
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fast or None)

    def rate(self, step: int) -> float:
        # The README's version multiplies by step / warmup, which wastes the first step.
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (self.lr - self.min_lr)

    def step(self, step: int, inputs: Tensor, targets: Tensor, new_text: bool) -> float:
        return self.take(step, inputs, targets).item()

    def take(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step; the loss stays on its device, which is not waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.fast):
            loss = self.forward(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class TiedLSTM(nn.Module):
    """Embedding, nn.LSTM, and the embedding again as output matrix, with dropout between all of them."""

    def __init__(self, vocab_size: int, d_model: int, n_layers: int, dropout: float):
        super().__init__()
        self.encoder = nn.Embedding(vocab_size, d_model)
        self.lstm = nn.LSTM(d_model, d_model, n_layers, dropout=dropout)
        self.decoder = nn.Linear(d_model, vocab_size)
        self.decoder.weight = self.encoder.weight
        self.drop = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, hidden: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(T, B) tokens; log-probabilities (T * B, V)."""
        output, hidden = self.lstm(self.drop(self.encoder(inputs)), hidden)
        logits = self.decoder(self.drop(output))
        return F.log_softmax(logits.view(-1, logits.shape[-1]), dim=1), hidden

    def load(self, weights: Weights) -> None:
        """Copy the weights of a tied LSTMLM."""
        names = {
            "encoder.weight": "embedding.weight",
            "decoder.weight": "embedding.weight",
            "decoder.bias": "head.bias",
        }
        for layer in range(self.lstm.num_layers):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                names[f"lstm.{kind}_l{layer}"] = f"layers.{layer}.{kind}_l0"
        self.load_state_dict({theirs: weights[ours] for theirs, ours in names.items()})


class LSTMLoop:
    """pytorch/examples' training step: hidden carried and cut, clipping, plain gradient descent by hand."""

    def __init__(self, model: TiedLSTM, lr: float, clip: float):
        self.model, self.lr, self.clip = model.train(), lr, clip
        self.hidden: tuple[Tensor, Tensor] | None = None

    def step(self, step: int, inputs: Tensor, targets: Tensor, new_text: bool) -> float:
        self.hidden = None if new_text or self.hidden is None else tuple(h.detach() for h in self.hidden)
        self.model.zero_grad()
        log_probs, self.hidden = self.model(inputs.t().contiguous(), self.hidden)
        loss = F.nll_loss(log_probs, targets.t().reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for p in self.model.parameters():
            p.data.add_(p.grad, alpha=-self.lr)
        return loss.item()
