"""The Transformer decoder: one class, whose parts (positions, norm, MLP, heads, window) are options."""

import math
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from lmlab.models.attention import KV, Attention, Placement, alibi_slopes, rotary_angles
from lmlab.models.dropout import Dropout
from lmlab.models.layers import TokenEmbedding, init_linears, make_mlp, make_norm, one_of
from lmlab.models.mask_pool import PooledDropout
from lmlab.types import Hidden, State, Tokens

DROPOUT_MASKS = ("fresh", "pool")
# Slots that a ring grows by while the text is shorter than the window: a step then costs what the text needs.
GROWTH = 128


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): norms come first (Radford et al. 2019, section 2.3).

    One of the two may be missing.
    """

    def __init__(
        self, attention: Attention | None, mlp: nn.Module | None, make_norm: Callable[[], nn.Module], dropout: nn.Module
    ):
        super().__init__()
        self.attention_norm = None if attention is None else make_norm()
        self.attention = attention
        self.mlp_norm = None if mlp is None else make_norm()
        self.mlp = mlp
        self.dropout = dropout

    def forward(self, x: Hidden, place: Placement, past: KV | None) -> tuple[Hidden, KV | None]:
        kv = None
        if self.attention is not None:
            y, kv = self.attention(self.attention_norm(x), place, past)
            x = x + (self.dropout(y) if self.training else y)
        if self.mlp is not None:
            y = self.mlp(self.mlp_norm(x))
            x = x + (self.dropout(y) if self.training else y)
        return x, kv


def _order(sublayers: str | None, n_layers: int | None) -> str:
    """The sublayers in order, as s and f."""
    if sublayers is None:
        if n_layers is None or n_layers < 1:
            raise ValueError(f"model.n_layers={n_layers} must be at least 1, or null with model.sublayers=...")
        return "sf" * n_layers
    if not re.fullmatch("f*s[sf]*", sublayers):
        raise ValueError(
            f"model.sublayers={sublayers} must be of s (self-attention) and f (feed-forward), with at least one s"
        )
    if n_layers is not None:
        raise ValueError(
            f"model.n_layers={n_layers} with model.sublayers={sublayers}, which tells how many: set model.n_layers=null"
        )
    return sublayers


def _usual_heads(d_model: int) -> int:
    """The number of heads by which they are nearest to 64 wide."""
    divisors = (n for n in range(1, d_model + 1) if d_model % n == 0)
    return min(divisors, key=lambda n: abs(math.log(d_model / n / 64)))


class TransformerLM(nn.Module):
    """A decoder-only Transformer. With its defaults it is laid out as Qwen3 (without query-key norm: as Llama), with
    `conf/model/gpt2.yaml` as GPT-2.

    Each position sees itself and the `window` - 1 positions before it (None: `max_context` - 1), whether the text
    comes whole or in chunks; through n_layers such bands it hears of n_layers times as many.

    positions: rotary learned alibi none. norm: rms layer. mlp: swiglu gelu relu2. n_kv_heads None: n_heads.
    d_head None: d_model / n_heads. d_ff None: see `make_mlp`. embed_ngram: how many tokens the input embedding sums.
    init_std: of all matrices; the projections back into the residual stream get init_std / sqrt(2 n_layers) (Radford
    et al. 2019), or zero with `zero_init_out`. The head initialises itself when it is not tied.
    sublayers: their order, s for self-attention and f for feed-forward (Press, Smith and Levy 2020), as in `fsf`;
    n_layers is then None. None: (sf) * n_layers. attention: the kernel, see `Attention`. dropout_masks: `fresh`, or
    `pool`, see `PooledDropout`; not of attention's.

    The state is (count, written, recent, ((k, v), ...)): tokens seen, tokens written to the ring, the last
    embed_ngram - 1 tokens, and each layer's cache, (B, n_kv_heads, at most window, d_head).
    """

    recurrent = False

    def __init__(
        self, *, vocab_size: int, head: Callable[..., nn.Module], d_model: int, n_layers: int | None, n_heads: int,
        n_kv_heads: int | None, d_head: int | None, d_ff: int | None, max_context: int, window: int | None,
        positions: str, rope_base: float, norm: str, norm_eps: float, mlp: str, qk_norm: bool, bias: bool,
        tie_embeddings: bool, embed_ngram: int, dropout: float, dropout_embed: float, dropout_attention: float,
        init_std: float, zero_init_out: bool, sublayers: str | None = None, attention: str = "auto",
        dropout_masks: str = "fresh", token_counts: Int[Tensor, " V"] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.vocab_size, self.d_model, self.max_context = vocab_size, d_model, max_context
        self.band, self.positions = max_context if window is None else window, positions
        self.rope_base, self.d_head = rope_base, d_model // n_heads if d_head is None else d_head
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        self._check(n_heads, n_kv_heads, d_head)
        sublayers = _order(sublayers, n_layers)
        dropping = {"fresh": Dropout, "pool": PooledDropout}[one_of("dropout_masks", dropout_masks, DROPOUT_MASKS)]
        self.embed = TokenEmbedding(vocab_size, d_model, embed_ngram, tie_embeddings)
        self.position_embed = nn.Embedding(max_context, d_model) if positions == "learned" else None
        self.dropout = dropping(dropout_embed)
        heads = (d_model, n_heads, n_kv_heads, self.d_head, bias, qk_norm, norm, norm_eps, dropout_attention, attention)
        self.blocks = nn.ModuleList(
            Block(
                Attention(*heads) if "s" in part else None,
                make_mlp(mlp, d_model, d_ff, bias) if "f" in part else None,
                lambda: make_norm(norm, d_model, norm_eps, bias),
                dropping(dropout),
            )
            for part in re.findall("sf?|f", sublayers)
        )
        self.norm = make_norm(norm, d_model, norm_eps, bias)
        self._make_tables(n_heads)
        self._initialise(init_std, 0.0 if zero_init_out else init_std / math.sqrt(len(sublayers)))
        tied = self.embed.weight if tie_embeddings else None
        self.head = head(d_model=d_model, vocab_size=vocab_size, embedding=tied, token_counts=token_counts)

    def _check(self, n_heads: int, n_kv_heads: int, d_head: int | None) -> None:
        one_of("positions", self.positions, ("rotary", "learned", "alibi", "none"))
        if d_head is None and self.d_model % n_heads:
            raise ValueError(
                f"d_model={self.d_model} must be a multiple of n_heads={n_heads}: "
                f"n_heads={_usual_heads(self.d_model)} suits it, or set d_head"
            )
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_heads={n_heads} must be a multiple of n_kv_heads={n_kv_heads}")
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(
                f"d_head={self.d_head} must be even with positions=rotary: choose d_model={self.d_model} a multiple "
                f"of 2 * n_heads={2 * n_heads}"
            )
        if not 1 <= self.band <= self.max_context:
            raise ValueError(
                f"model.window={self.band} must lie between 1 and model.max_context={self.max_context}, which is "
                "batching.seq_len by default"
            )

    def _make_tables(self, n_heads: int) -> None:
        """What positions need that is not learnt; never saved."""
        cos = sin = slopes = None
        if self.positions == "rotary":
            cos, sin = rotary_angles(torch.arange(self.max_context), self.d_head, self.rope_base)
        if self.positions == "alibi":
            slopes = torch.tensor(alibi_slopes(n_heads))
        for name, table in (("cos", cos), ("sin", sin), ("slopes", slopes)):
            self.register_buffer(name, table, persistent=False)

    def _initialise(self, std: float, std_out: float) -> None:
        init_linears(self.blocks, std, ("out", "down"), std_out)
        for part in self.modules():
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=std)

    @property
    def slides(self) -> bool:
        """Whether a text may go on past max_context; learned positions end there."""
        return self.positions != "learned"

    def forward(self, tokens: Tokens, state: State = None) -> tuple[Hidden, State]:
        """Hidden after the final norm, and the state to go on with.

        Without gradients a step of one token writes into the cache that it is given instead of copying it. The
        caller's older state stays usable where the ring still holds all that it saw (it is then copied): one step
        back always, further while the text is no longer than the window. Beyond that it raises ValueError; keep a
        copy, which `types.select` and `types.expand` make, in order to branch.
        """
        B, T = tokens.shape
        count = recent = level = None
        layers, in_place = (), False
        if state is not None:
            in_place = T == 1 and not torch.is_grad_enabled()
            level = _level(state[0]) if in_place else None
            count, written, recent, layers = self._writable(state, in_place, level)
        place = self._place(T, count, layers[0][0].shape[2] if layers else None, in_place, tokens.device, level)
        x, recent = self.embed(tokens, recent)
        if self.position_embed is not None:
            x = x + self.position_embed(self._positions(T, count, tokens.device, level))
        # Embedding tables stay fp32 where the layers have bf16 weights (precision=bf16).
        x, caches = self.through(self.dropout(x.to(self.norm.weight.dtype)), place, layers)
        count = torch.full((B,), T, device=tokens.device) if count is None else count + T
        written = written.copy_(count) if in_place else count.clone()
        return self.norm(x), (count, written, recent, caches)

    def through(self, x: Hidden, place: Placement, past: Sequence[KV]) -> tuple[Hidden, tuple[KV, ...]]:
        """What the blocks make of x, and each layer's cache after it. past: those before, none where text starts."""
        caches, before = [], iter(past)
        for block in self.blocks:
            x, kv = block(x, place, next(before, None) if block.attention is not None else None)
            if kv is not None:
                caches.append(kv)
        return x, tuple(caches)

    def _positions(self, n: int, count: Tensor | None, device: torch.device, level: int | None) -> Int[Tensor, "..."]:
        seen = 0 if count is None else level
        if not self.slides and (end := n + (int(count.max()) if seen is None else seen)) > self.max_context:
            raise ValueError(
                f"a text of {end} tokens exceeds max_context={self.max_context}, where positions=learned end: give the "
                "last part of it with state=None, or train with positions=rotary"
            )
        if seen is None:
            return count[:, None] + torch.arange(n, device=device)
        return torch.arange(seen, seen + n, device=device)

    def _place(self, n: int, count: Tensor | None, size: int | None, in_place: bool, device: torch.device,
               level: int | None = None) -> Placement:  # fmt: skip
        rotary = None
        if self.positions == "rotary":
            seen = 0 if count is None else level
            if seen is not None and seen + n <= len(self.cos):
                rotary = self.cos[seen : seen + n], self.sin[seen : seen + n]
            else:
                rotary = rotary_angles(self._positions(n, count, device, level), self.d_head, self.rope_base)
        return Placement.of(n, self.band, count, in_place, rotary, self.slopes, device, size, level)

    def _writable(self, state: State, in_place: bool, level: int | None) -> State:
        """The state with room for what comes; with rings of its own where `in_place` would spoil what someone else
        needs."""
        count, written, recent, layers = state
        size, needed = layers[0][0].shape[2], self.band
        # Compiled steps want one shape, and a stretch of several tokens starts from a full ring.
        if size < self.band and in_place and not torch.compiler.is_compiling():
            needed = min(self.band, (int(count.max()) if level is None else level) + 1)
        if size < needed:
            grown = min(self.band, needed + GROWTH)
            layers = tuple(tuple(F.pad(t, (0, 0, 0, grown - size)) for t in kv) for kv in layers)
            return count, count.clone(), recent, layers
        # With gradients nothing is written in place, and a GPU would be waited for at every step of training.
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and count.device.type != "cpu"):
            return state
        shared = not torch.equal(written, count)
        if shared and bool(((written > count + 1) & (written > self.band)).any()):
            raise ValueError(
                f"this state was continued by {int((written - count).max())} tokens, which overwrote what it needs: "
                "copy a state before branching from it (types.select, types.expand), or continue it with gradients on"
            )
        # Inference tensors may not be written outside inference mode, nor what a backward pass still needs.
        inference = layers[0][0].is_inference() and not torch.is_inference_mode_enabled()
        if in_place and (shared or inference or layers[0][0].requires_grad):
            layers = tuple(tuple(t.detach().clone() for t in kv) for kv in layers)
            written = written.clone()
        return count, written, recent, layers


def _level(count: Tensor) -> int | None:
    """What all of `count` are, where it is one number and asking waits for no GPU."""
    if count.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    seen = count.tolist()
    return seen[0] if seen.count(seen[0]) == len(seen) else None
