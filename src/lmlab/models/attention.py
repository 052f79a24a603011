"""Causal self-attention over a band of positions, its positions (rotary, ALiBi), and its key/value ring."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lmlab.models import kernels
from lmlab.models.layers import Linear, make_norm, one_of
from lmlab.models.products import attend
from lmlab.types import Hidden, for_float64

# Up to this many keys whole rows of attention are plain products on a CPU with kernel=auto: 3 to 10 times as fast as
# scaled_dot_product_attention there at 64 and 256 keys, in bf16 and fp32 (2 cores with AVX-512).
PRODUCTS = 256
# From this many heads in all rows on they are quicker for one token, too: with 64 heads and 160 keys 104 us against
# 115, with 192 heads 279 against 352, with 12 heads 35 against 27. In bf16, where products of slots in use copy them
# first, never: with 192 heads and 140 keys 1,769 us against 320.
MANY = 64
KERNELS = ("auto", "sdpa", "products")

# Keys and values, each (B, n_kv_heads, C, d_head).
KV = tuple[Tensor, Tensor]


def rotary_angles(positions: Int[Tensor, "*n"], d_head: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and signed sin for `rotate`, each (*n, 1, d_head) in float32 (Su et al. 2021, eq. 34).

    Worked out in float64: in float32 the angle of position 100,000 is already off by 0.004.
    """
    at = for_float64(positions)
    exponent = torch.arange(0, d_head, 2, dtype=torch.float64, device=at.device) / d_head
    angle = (at.double()[..., None] * base**-exponent)[..., None, :]
    cos, sin = angle.cos(), angle.sin()
    pair = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return tuple(t.to(positions.device, torch.float32) for t in pair)


def rotate(x: Float[Tensor, "B T H d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "B T H d"]:
    """Rotate dimension i with i + d/2, the convention of Hugging Face's Llama (the paper's is 2i with 2i + 1)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).type_as(x)


def alibi_slopes(n_heads: int) -> list[float]:
    """How much a head is penalised per token of distance (Press et al. 2022, section 3 and their released code
    for numbers of heads that are no power of two)."""
    power = 1 << (n_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2.0 ** (-4 * (2 * i + 1) / power) for i in range(n_heads - power)]


def distance_mask(distance: Int[Tensor, "*B T K"], seen: Bool[Tensor, "*B T K"], slopes: Tensor | None) -> Tensor:
    """What is added to the scores of queries T and keys K, or which keys are seen: (B or 1, H or 1, T, K)."""
    if slopes is None:
        mask = seen.unsqueeze(-3)
    else:
        bias = -slopes[:, None, None] * distance.unsqueeze(-3)
        mask = bias.masked_fill(~seen.unsqueeze(-3), float("-inf"))
    return mask if mask.ndim == 4 else mask[None]


@dataclass(frozen=True)
class Placement:
    """Where the tokens of one forward pass stand; made once and shared by all layers.

    rotary: cos and sin of their positions, (1 or B, T, 1, d_head); None for other kinds of positions.
    count: (B,) tokens seen before these, or None when every row starts here.
    slots: (B,) of the ring when one token is written in place, else None.
    first: mask of the first band of queries over the keys that the ring and they make (None: plainly causal).
    later: mask of a full band of queries over the 2 * band - 1 keys that end with them (None: no such queries).
    level: tokens seen before this one by every row, where one token is written in place and that is known to be one
        number. It sees all slots in use, so `first` is what ALiBi adds to those, or None.
    """

    band: int
    rotary: tuple[Tensor, Tensor] | None
    count: Int[Tensor, " B"] | None
    slots: Int[Tensor, " B"] | None
    first: Tensor | None
    later: Tensor | None
    level: int | None = None

    @classmethod
    def of(cls, n: int, band: int, count: Tensor | None, in_place: bool, rotary: tuple | None, slopes: Tensor | None,
           device: torch.device, size: int | None = None, level: int | None = None) -> "Placement":  # fmt: skip
        """`n` tokens, each of which sees itself and the band - 1 before it. size: slots of the ring that they go on
        from, which has fewer than `band` while the text is short."""
        if level is not None:
            first = None
            if slopes is not None:
                slot = torch.arange(min(level + 1, band), device=device)
                first = (-slopes[:, None] * ((level - slot) % band))[None, :, None]
            return cls(band, rotary, count, None, first, None, level)
        at = torch.arange(n, device=device)
        later = None
        if n > band:
            distance = at[:band, None] + (band - 1) - torch.arange(2 * band - 1, device=device)
            later = distance_mask(distance, (distance >= 0) & (distance < band), slopes)
        at = at[:band]
        if count is None:
            distance = at[:, None] - at
            first = None if slopes is None else distance_mask(distance, distance >= 0, slopes)
            return cls(band, rotary, None, None, first, later)
        slot = torch.arange(size, device=device)
        if in_place:
            # The token is in its slot already when it looks, so slot i holds the last position that is i mod band.
            distance = ((count[:, None] - slot) % band)[:, None]
            first = distance_mask(distance, distance <= count[:, None, None], slopes)
            return cls(band, rotary, count, count % band, first, later)
        # Distance from the last position before these to what slot i holds; empty slots lie before the start.
        back = (count[:, None] - 1 - slot) % band
        ring = back[:, None] + 1 + at[:, None]
        seen = (back < count[:, None])[:, None] & (ring < band)
        own = (at[:, None] - at).expand(len(count), -1, -1)
        distance = torch.cat((ring, own), -1)
        return cls(band, rotary, count, None, distance_mask(distance, torch.cat((seen, own >= 0), -1), slopes), later)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023), each query over the last `band` positions at most.

    kernel: `sdpa`, torch's; `products`, batched products wherever there is no dropout and no group; `auto`, those on a
    CPU for whole rows of at most PRODUCTS tokens. With kernels=plain all are torch's.

    The cache is a ring: position p lies in slot p mod band. Until a row has seen `band` tokens a cache may have fewer
    slots, position p in slot p.
    """

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, d_head: int, bias: bool, qk_norm: bool, norm: str,
                 norm_eps: float, dropout: float, kernel: str):  # fmt: skip
        super().__init__()
        self.kernel = one_of("attention", kernel, KERNELS)
        self.n_heads, self.n_kv_heads, self.d_head, self.dropout = n_heads, n_kv_heads, d_head, dropout
        self.qkv = Linear(d_model, (n_heads + 2 * n_kv_heads) * d_head, bias=bias)
        self.out = Linear(n_heads * d_head, d_model, bias=bias)
        self.q_norm = make_norm(norm, d_head, norm_eps, bias=False) if qk_norm else None
        self.k_norm = make_norm(norm, d_head, norm_eps, bias=False) if qk_norm else None

    def forward(self, x: Hidden, place: Placement, past: KV | None) -> tuple[Hidden, KV]:
        """past: the ring, which is written in place when `place.slots` says so; None at the start of text."""
        heads = self.qkv(x).view(*x.shape[:2], -1, self.d_head)
        q, k, v = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if place.rotary is not None:
            q, k = rotate(q, *place.rotary), rotate(k, *place.rotary)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if past is None:
            y, kv = self._from_start(q, k, v, place)
        elif place.level is not None:
            y, kv = self._in_step(q, k, v, past, place)
        elif place.slots is not None:
            y, kv = self._in_place(q, k, v, past, place)
        else:
            y, kv = self._from_ring(q, k, v, past, place)
        return self.out(y.transpose(1, 2).flatten(2)), kv

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self._by_products(q, k):
            return attend(q, k, v, mask)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )  # fmt: skip

    def _by_products(self, q: Tensor, k: Tensor) -> bool:
        dropped = self.training and self.dropout > 0
        if kernels.are_plain() or self.kernel == "sdpa" or dropped or self.n_kv_heads != self.n_heads:
            return False
        return self.kernel == "products" or (q.device.type == "cpu" and 1 < q.shape[2] == k.shape[2] <= PRODUCTS)

    def _by_products_in_step(self, q: Tensor) -> bool:
        many = len(q) * self.n_kv_heads >= MANY
        return many and q.device.type == "cpu" and q.dtype is torch.float32 and not kernels.are_plain()

    def _later(self, first: Tensor, q: Tensor, k: Tensor, v: Tensor, place: Placement) -> Tensor:
        """`first` is what the first band of queries saw; the others see only keys of this pass, band by band."""
        parts, band = [first], place.band
        for start in range(band, q.shape[2], band):
            stop = min(start + band, q.shape[2])
            keys = slice(start - band + 1, stop)
            mask = place.later[:, :, : stop - start, : band - 1 + stop - start]
            parts.append(self._attend(q[:, :, start:stop], k[:, :, keys], v[:, :, keys], mask))
        return torch.cat(parts, 2) if len(parts) > 1 else first

    def _from_start(self, q: Tensor, k: Tensor, v: Tensor, place: Placement) -> tuple[Tensor, KV]:
        n, band = q.shape[2], place.band
        y = self._attend(q[:, :, :band], k[:, :, :band], v[:, :, :band], place.first)
        if n <= band:
            return y, (k, v)
        # Position n - band + i belongs to slot (n + i) mod band.
        return self._later(y, q, k, v, place), tuple(t[:, :, -band:].roll(n % band, 2) for t in (k, v))

    def _in_step(self, q: Tensor, k: Tensor, v: Tensor, past: KV, place: Placement) -> tuple[Tensor, KV]:
        """One token, at one position of all rows: slots in use need no mask, and unused ones are not looked at."""
        n, slot = min(place.level + 1, place.band), place.level % place.band
        for ring, new in zip(past, (k, v), strict=True):
            ring.select(2, slot).copy_(new.select(2, 0))
        k, v = (ring[:, :, :n].to(q.dtype) for ring in past)
        # The heads of a group stand where several queries would.
        grouped = q.view(len(q), self.n_kv_heads, -1, self.d_head)
        mask = place.first
        if mask is not None:
            mask = mask.view(1, self.n_kv_heads, -1, n).to(q.dtype)
        if self._by_products_in_step(q):
            return attend(grouped, k, v, q.new_zeros(()) if mask is None else mask).view_as(q), past
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).view_as(q), past

    def _in_place(self, q: Tensor, k: Tensor, v: Tensor, past: KV, place: Placement) -> tuple[Tensor, KV]:
        rows = torch.arange(len(q), device=q.device)
        for ring, new in zip(past, (k, v), strict=True):
            ring[rows, :, place.slots] = new[:, :, 0].to(ring.dtype)
        k, v = (ring.to(q.dtype) for ring in past)
        return self._attend(q, k, v, place.first), past

    def _from_ring(self, q: Tensor, k: Tensor, v: Tensor, past: KV, place: Placement) -> tuple[Tensor, KV]:
        n, band = q.shape[2], place.band
        both = [torch.cat((ring.to(new.dtype), new), 2) for ring, new in zip(past, (k, v), strict=True)]
        y = self._attend(q[:, :, :band], *(t[:, :, : 2 * band] for t in both), place.first)
        # Slot i ends up with the last position that is i mod band: one of this pass, or what it held before.
        slot = torch.arange(band, device=q.device)
        new = n - 1 - (place.count[:, None] + n - 1 - slot) % band
        index = torch.where(new >= 0, band + new, slot)[:, None, :, None]
        kv = tuple(t.gather(2, index.expand(-1, t.shape[1], -1, t.shape[3])) for t in both)
        return self._later(y, q, k, v, place), kv
