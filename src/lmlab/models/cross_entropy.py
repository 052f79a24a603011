"""Cross entropy of a linear layer over a large vocabulary, in bounded memory."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Below this many logits the fused softmax of F.cross_entropy is faster than blocks (measured, 2 cores).
SMALL = 2**21
# Logits in one block of the vocabulary, 32 MB in fp32; its width stays within WIDTHS: narrower is slow to multiply,
# wider leaves the cache (measured on 2 cores).
BLOCK = 2**23
WIDTHS = (1024, 8192)
# Rows that are treated at once; keeps a block within 64 MB.
ROWS = 2**14
# Blocks are kept for the backward pass up to this size, above they are computed again (a third more work).
KEPT_BYTES = 2**29


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(logits / softcap), or the logits themselves."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _BlockNLL(torch.autograd.Function):
    """-log softmax(softcap(h W' + b))[target], a block of the vocabulary at a time.

    Blocks over the vocabulary and not over rows: each row of W, and of its gradient, is visited once. What is kept
    is exp(logit - the block's largest), without the target's: it goes into the backward products as it is, for a
    row's factors can move to the thin side, and the target's own 1 - p is added in fp32, where p near 1 cancels.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, softcap, dtype, keep):
        h = hidden.to(dtype)
        n = len(h)
        lse = h.new_full((n,), -math.inf, dtype=torch.float32)
        picked = torch.zeros_like(lse)
        kept = []
        for start, stop in _blocks(n, len(weight)):
            z = _block_logits(h, weight, bias, start, stop, softcap)
            inside, local = _local(targets, start, stop)
            picked = torch.where(inside, z.gather(1, local)[:, 0].float(), picked)
            top = z.amax(1).float()
            e = z.float().sub_(top[:, None]).exp_()
            lse = torch.logaddexp(lse, top + e.sum(1).log())
            if keep:
                kept += [top, _without_target(e, inside, local).to(dtype)]
        ctx.save_for_backward(hidden, weight, bias, targets, lse, picked, *kept)
        ctx.softcap, ctx.dtype = softcap, dtype
        return lse - picked

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, bias, targets, lse, picked, *kept = ctx.saved_tensors
        h = hidden.to(ctx.dtype)
        grad = grad.float()
        d_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        for i, (start, stop) in enumerate(_blocks(len(h), len(weight))):
            # d nll / d logits = (softmax - onehot) * grad = e * scale, row by row, but for the target.
            if kept:
                e, scale = kept[2 * i + 1], grad * (kept[2 * i] - lse).exp()
            else:
                z = _block_logits(h, weight, bias, start, stop, ctx.softcap)
                e = (z.float() - lse[:, None]).exp_()
                if ctx.softcap is not None:
                    e = e * (1 - (z.float() / ctx.softcap) ** 2)
                e, scale = _without_target(e, *_local(targets, start, stop)).to(ctx.dtype), grad
            d_hidden.addcmul_((e @ weight[start:stop].to(ctx.dtype)).float(), scale[:, None])
            if d_weight is not None:
                scaled = (hidden * scale[:, None]).to(ctx.dtype)
                if ctx.dtype == d_weight.dtype:
                    torch.mm(e.t(), scaled, out=d_weight[start:stop])
                else:
                    d_weight[start:stop] = e.t() @ scaled
            if d_bias is not None:
                d_bias[start:stop] = e.t() @ scale.to(ctx.dtype)
        hot = -torch.expm1(picked - lse) * grad
        if ctx.softcap is not None:
            hot = hot * (1 - (picked / ctx.softcap) ** 2)
        d_hidden.addcmul_(weight[targets], hot[:, None], value=-1)
        if d_weight is not None:
            d_weight.index_add_(0, targets, (hidden * -hot[:, None]).to(d_weight.dtype))
        if d_bias is not None:
            d_bias.index_add_(0, targets, -hot.to(d_bias.dtype))
        return d_hidden.to(hidden.dtype), d_weight, d_bias, None, None, None, None


def _blocks(n: int, vocab_size: int) -> list[tuple[int, int]]:
    """Equal stretches of the vocabulary, each at most about BLOCK logits for n rows."""
    width = min(max(BLOCK // n, WIDTHS[0]), WIDTHS[1])
    width = math.ceil(vocab_size / math.ceil(vocab_size / width))
    return [(start, min(start + width, vocab_size)) for start in range(0, vocab_size, width)]


def _local(targets: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in the block, (N,), and their columns there (any column for the others), (N, 1)."""
    return (targets >= start) & (targets < stop), (targets - start).clamp(0, stop - start - 1)[:, None]


def _without_target(e: Tensor, inside: Tensor, local: Tensor) -> Tensor:
    return e.scatter_(1, local, e.gather(1, local).masked_fill(inside[:, None], 0))


def _block_logits(h, weight, bias, start, stop, softcap):
    w = weight[start:stop].to(h.dtype).t()
    z = h @ w if bias is None else torch.addmm(bias[start:stop].to(h.dtype), h, w)
    return cap(z, softcap)


def linear_nll(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    softcap: float | None = None,
) -> Float[Tensor, " N"]:
    """Cross entropy of softmax(hidden weight' + bias), in nats, fp32, one per row.

    With many logits it works in blocks: in the backward pass it holds one exponential per logit (in the products'
    type, which is autocast's or hidden's) as long as those fit KEPT_BYTES, and one block else. Only once
    differentiable there.
    """
    kind = hidden.device.type
    mixed = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else hidden.dtype
    if len(hidden) * len(weight) <= SMALL:
        if not mixed:
            # A matrix shared with the embedding stays fp32 when the layers' weights are bf16.
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        logits = F.linear(hidden, weight, bias)
        return F.cross_entropy(cap(logits, softcap).float(), targets, reduction="none")
    keep = torch.is_grad_enabled() and softcap is None
    keep = keep and len(hidden) * len(weight) * dtype.itemsize <= KEPT_BYTES
    parts = [
        _BlockNLL.apply(h, weight, bias, t, softcap, dtype, keep)
        for h, t in zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
