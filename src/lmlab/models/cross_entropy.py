"""Cross entropy of a linear layer over a large vocabulary, in bounded memory."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmlab import native
from lmlab.models import kernels
from lmlab.models.tied import announce
from lmlab.models.workspace import room

# Below this many logits the fused softmax of F.cross_entropy is faster than blocks (measured, 2 cores).
SMALL = 2**21
# Logits in one block of the vocabulary, 16 MB in fp32; its width stays within WIDTHS: narrower is slow to multiply,
# wider leaves the cache (measured on 2 cores).
BLOCK = 2**22
WIDTHS = (1024, 4096)
# Rows of matrices lie a multiple of so many numbers apart: at 700 x 650 x 33,278 that makes products 7 % faster in
# bf16, and up to twice in fp32.
ALIGN = 32
# Rows that are treated at once; keeps a block within 64 MB.
ROWS = 2**14
# Blocks are kept for the backward pass up to this size, above they are computed again (a third more work).
KEPT_BYTES = 2**29


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(logits / softcap), or the logits themselves."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden weight' + bias in hidden's type: a table stays in fp32 where the layers are kept in bf16."""
    return F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))


class _BlockNLL(torch.autograd.Function):
    """-log softmax(softcap(h W' + b))[target], a block of the vocabulary at a time.

    Blocks over the vocabulary and not over rows: each row of W, and of its gradient, is visited once, while it is in
    the cache. The target is taken out of its block before the softmax, so that what is summed is all the other words'
    mass, total * exp(peak): with it nll = softplus(log mass - target's logit) is precise for p near 1 too, also where
    probabilities are bf16. What is kept is each block's softmax, and its rows of W where they had to be cast; it goes
    into the backward products as it is, for a row's factors (its block's share of the mass, the incoming gradient) can
    move to the thin side, and the target's own 1 - p is added in full precision. A block's products may be made in
    parts, which have a softmax each.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, softcap, dtype, keep):
        h, n = _padded(hidden, 1.0, dtype), len(hidden)
        parts = _parts(h)
        full = torch.promote_types(dtype, torch.float32)
        peak = h.new_full((n,), -math.inf, dtype=full)
        total, picked = torch.zeros_like(peak), torch.zeros_like(peak)
        kept, whole = [], room("probabilities", (n * len(weight),), dtype, h.device) if keep else None
        # Half the size of W, and casting it again would cost more than reading it.
        cast = keep and dtype != weight.dtype
        rows = room("output matrix", (len(weight), h.shape[1]), dtype, h.device) if cast else None
        for start, stop in _blocks(n, len(weight)):
            w = _matrix(weight, bias, start, stop, parts, dtype, None if rows is None else rows[start:stop])
            into = None if whole is None else whole[n * start : n * stop].view(len(w), n, -1)
            z = cap(torch.bmm(h.expand(len(w), -1, -1), w.mT, out=into), softcap)
            if kernels.are_compiled(z):
                top, mass = native.softmax_block_(z, targets, start, peak, total, picked), None
                if keep:
                    kept += [top, mass, z, w if cast else None]
                continue
            inside, at = _local(targets, start, z)
            its = z[at]
            picked = torch.where(inside, its.to(full), picked)
            z.index_put_(at, its.masked_fill(inside, torch.finfo(dtype).min))
            top = _row_max(z).to(full)
            # One pass over memory, in fp32 inside. Out of place on a GPU, where nobody promises that in place is safe.
            p = torch.softmax(z, -1, out=z) if z.device.type == "cpu" else torch.softmax(z, -1)
            # A part's mass is mass * exp(top).
            mass = _row_max(p).to(full).reciprocal()
            for t, m in zip(top, mass, strict=True):
                higher = torch.maximum(peak, t)
                total = total * (peak - higher).exp() + m * (t - higher).exp()
                peak = higher
            if keep:
                kept += [top, mass, p, w if cast else None]
        # The default threshold of 20 would round p = 2e-9 to zero.
        nll = F.softplus(peak - picked + total.log(), threshold=60)
        ctx.save_for_backward(hidden, weight, bias, targets, nll, picked, peak, total, *kept)
        ctx.softcap, ctx.dtype, ctx.parts = softcap, dtype, parts
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, targets, nll, picked, peak, total, *kept = ctx.saved_tensors
        h, width = _padded(hidden, 1.0, ctx.dtype), hidden.shape[1]
        # 1 - p of the target, and what makes exp(logit - peak) of another word its p: both times grad.
        hot = -torch.expm1(-nll) * grad
        share = _share(hot, total)
        d_hidden = torch.zeros_like(h, dtype=nll.dtype)
        # Rounded to half precision at the end only: a frequent word's row is a sum over all its places.
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = room("gradient of the output matrix", tuple(weight.shape), nll.dtype, weight.device)
        d_bias = torch.empty_like(bias, dtype=nll.dtype) if ctx.needs_input_grad[2] else None
        # In full precision: a product of two types takes twice as long.
        turned = h.t().to(nll.dtype).contiguous() if ctx.parts > 1 else None
        for i, (start, stop) in enumerate(_blocks(len(h), len(weight))):
            # d nll / d logits = (softmax - onehot) * grad = p * scale, row by row, but for the target.
            top, mass, p, w = kept[4 * i : 4 * i + 4] or (None,) * 4
            w = _matrix(weight, bias, start, stop, ctx.parts, ctx.dtype, None) if w is None else w
            if kept:
                # Probabilities are within their block, or of its largest alone, where there is no mass.
                scale = (share if mass is None else share * mass) * (top - peak).exp()
            else:
                z = cap(torch.bmm(h.expand(len(w), -1, -1), w.mT), ctx.softcap).to(nll.dtype)
                p = (z - peak[:, None]).exp_()
                if ctx.softcap is not None:
                    p = p * (1 - (z / ctx.softcap) ** 2)
                p, scale = _without_target(p, *_local(targets, start, p)).to(ctx.dtype), share.expand(len(w), -1)
            if kernels.are_compiled(p):
                native.add_scaled_rows_(d_hidden, torch.bmm(p, w), scale.contiguous())
            else:
                for part, factor in zip(torch.bmm(p, w), scale, strict=True):
                    d_hidden.addcmul_(part.to(nll.dtype), factor[:, None])
            if d_weight is None and d_bias is None:
                continue
            if ctx.parts > 1:
                d_w = _transposed_product(p, (turned * scale[:, None]).to(ctx.dtype))
            else:
                d_w = torch.bmm(p.mT, (h * scale[..., None]).to(ctx.dtype))
            if d_weight is not None:
                d_weight[start:stop].unflatten(0, d_w.shape[:2]).copy_(d_w[..., :width])
            if d_bias is not None:
                # Of the column of ones.
                d_bias[start:stop] = d_w[..., width].flatten()
        d_hidden = d_hidden[:, :width]
        if ctx.softcap is not None:
            hot = hot * (1 - (picked / ctx.softcap) ** 2)
        d_all = _with_targets(hidden, weight, bias, targets, hot, d_hidden, d_weight, d_bias)
        return *d_all, None, None, None, None


class _TilesNLL(torch.autograd.Function):
    """As `_BlockNLL` where probabilities are kept, in kernels for AMX: each strip of the vocabulary is multiplied, made
    a softmax and, on the way back, the gradient of both factors while it is in the cache."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets):
        h, w = hidden.to(torch.bfloat16).contiguous(), weight.float().contiguous()
        p = room("probabilities", (native.head_tiles_size(len(h), len(w)),), h.dtype, h.device)
        tops, sums, picked = native.head_tiles(h, w, None if bias is None else bias.float().contiguous(), targets, p)
        peak = tops.amax(0)
        total = (tops - peak).exp_().mul_(sums).sum(0)
        peak, total = peak[: len(h)].clone(), total[: len(h)].clone()
        nll = F.softplus(peak - picked + total.log(), threshold=60)
        ctx.save_for_backward(hidden, weight, bias, targets, nll, peak, total, p, tops)
        ctx.spent = False
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.spent:
            raise RuntimeError(
                "this loss went back once, which spoilt its probabilities: kernels=plain may do so twice"
            )
        ctx.spent = True
        hidden, weight, bias, targets, nll, peak, total, p, tops = ctx.saved_tensors
        h, w = hidden.to(torch.bfloat16).contiguous(), weight.float().contiguous()
        hot = -torch.expm1(-nll) * grad
        d_weight = d_bias = None
        if ctx.needs_input_grad[1]:
            d_weight = room("gradient of the output matrix", tuple(weight.shape), nll.dtype, weight.device)
        if ctx.needs_input_grad[2]:
            d_bias = torch.empty_like(bias, dtype=nll.dtype)
        d_hidden = native.head_tiles_backward(h, w, p, tops, peak, _share(hot, total), d_weight, d_bias)
        return *_with_targets(hidden, weight, bias, targets, hot, d_hidden, d_weight, d_bias), None


def _share(hot: Tensor, total: Tensor) -> Tensor:
    """hot / total; nothing where nobody but the target has any probability."""
    return torch.where(total == 0, 0.0, hot / total)


def _with_targets(hidden, weight, bias, targets, hot, d_hidden, d_weight, d_bias):
    """The gradients, when those of the targets' own logits, -hot, are added, in the types of what they belong to."""
    d_hidden.addcmul_(weight[targets], hot[:, None], value=-1)
    if d_weight is not None:
        d_weight.index_add_(0, targets, hidden * -hot[:, None])
        d_weight = d_weight.to(weight.dtype)
        announce(weight, d_weight)
    if d_bias is not None:
        d_bias = d_bias.index_add_(0, targets, -hot).to(bias.dtype)
    return d_hidden.to(hidden.dtype), d_weight, d_bias


def _row_max(x: Tensor) -> Tensor:
    """x.amax(-1). As integers, bf16 numbers are compared four times as fast (700 x 3,712: 0.07 ms against 0.31)."""
    if x.dtype != torch.bfloat16 or not kernels.may_be_ours(x.device):
        return x.amax(-1)
    bits = x.view(torch.int16)
    # Positive numbers are in order; negative ones come below them, in reverse.
    most = bits.amax(-1)
    if (most < 0).any():
        most = torch.where(most < 0, bits.amin(-1), most)
    return most.view(torch.bfloat16)


def _padded(x: Tensor, column: Tensor | float, dtype: torch.dtype, into: Tensor | None = None) -> Tensor:
    """(N, D), then `column`, then zeros up to ALIGN, in `dtype`: one product then adds the bias, another makes its
    gradient.

    The zeros take part: oneDNN's AMX kernels read up to a whole tile of a row also where a view of it is shorter, and
    what they then multiply by zero may not be NaN.
    """
    n, d = x.shape
    out = x.new_empty(n, _up(d + 1), dtype=dtype) if into is None else into
    out[:, :d] = x
    out[:, d] = column
    out[:, d + 1 :] = 0
    return out


def _up(n: int) -> int:
    return math.ceil(n / ALIGN) * ALIGN


def _parts(h: Tensor) -> int:
    """How many products are made side by side of each block.

    oneDNN divides one product of few rows and columns among threads badly, and two products well: for 700 rows, 3,712
    words and a width of 672, the gradient of hidden takes 1.6 ms in two parts and 2.8 in one (two cores with AMX).
    Without AMX the two take the same time.
    """
    return 2 if h.dtype is torch.bfloat16 and kernels.have_tiles(h.device) and torch.get_num_threads() > 1 else 1


def _transposed_product(p: Float[Tensor, "K N V"], h: Float[Tensor, "K D N"]) -> Float[Tensor, "K V D"]:
    """p' h' as (h p)': AMX reads transposed rows three times as slowly as it multiplies them.

    Rows lie a bit further apart than their length, lest a power of two puts them all into one place of the cache.
    """
    k, d, _ = h.shape
    width = p.shape[2]
    out = h.new_empty(k, d, width + ALIGN)[..., :width]
    return torch.bmm(h, p, out=out).mT


def _matrix(
    weight: Tensor, bias: Tensor | None, start: int, stop: int, parts: int, dtype: torch.dtype, into: Tensor | None
) -> Float[Tensor, "K V D"]:
    """Rows of W, each followed by its bias and zeros, in so many parts if they are equal."""
    w = _padded(weight[start:stop], 0.0 if bias is None else bias[start:stop], dtype, into)
    return w.view(parts if len(w) % parts == 0 else 1, -1, w.shape[1])


def _blocks(n: int, vocab_size: int) -> list[tuple[int, int]]:
    """Equal stretches of the vocabulary, each at most about BLOCK logits for n rows."""
    width = min(max(BLOCK // n, WIDTHS[0]), WIDTHS[1])
    width = _up(math.ceil(vocab_size / math.ceil(vocab_size / width)))
    return [(start, min(start + width, vocab_size)) for start in range(0, vocab_size, width)]


def _local(targets: Tensor, start: int, z: Float[Tensor, "K N V"]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Which targets lie in the block whose logits are z, (N,), and the parts, rows and columns where they are (any
    place for the others)."""
    parts, n, width = z.shape
    rows = torch.arange(n, device=targets.device)
    inside = (targets >= start) & (targets < start + parts * width)
    place = (targets - start).clamp(0, parts * width - 1)
    return inside, (place // width, rows, place % width)


def _without_target(e: Tensor, inside: Tensor, at: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    # Not scatter_, which copies the whole block to put one number into each row (4 % of an LSTM's step).
    return e.index_put_(at, e[at].masked_fill(inside, 0))


def linear_nll(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    softcap: float | None = None,
) -> Float[Tensor, " N"]:
    """Cross entropy of softmax(hidden weight' + bias), in nats, fp32, one per row.

    With many logits it works in blocks: for the backward pass it holds one probability per logit, as long as those
    fit KEPT_BYTES, and one block else. Only once differentiable there. It computes in autocast's or hidden's type;
    the gradients have the types of what they belong to.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if kernels.are_plain() or len(hidden) * len(weight) <= SMALL:
        logits = linear(hidden, weight, bias)
        return F.cross_entropy(cap(logits, softcap).float(), targets, reduction="none")
    keep = torch.is_grad_enabled() and softcap is None
    keep = keep and len(hidden) * len(weight) * dtype.itemsize <= KEPT_BYTES
    small = native.head_tiles_size(len(hidden), len(weight)) * dtype.itemsize <= KEPT_BYTES
    if keep and small and dtype is torch.bfloat16 and kernels.are_tiled(hidden, weight):
        return _TilesNLL.apply(hidden, weight, bias, targets)
    parts = [
        _BlockNLL.apply(h, weight, bias, t, softcap, dtype, keep)
        for h, t in zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
