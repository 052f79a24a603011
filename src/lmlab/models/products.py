"""Attention written as batched products: on a processor torch's own is several times slower for short texts."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmlab import native
from lmlab.models import kernels


def attend(
    q: Float[Tensor, "B H T d"],
    k: Float[Tensor, "B H K d"],
    v: Float[Tensor, "B H K d"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None,
) -> Float[Tensor, "B H T d"]:
    """softmax(q k' / sqrt(d) + mask) v, keeping the (B * H, T, K) probabilities for the backward pass.

    mask: as of scaled_dot_product_attention, broadcast to (B, H, T, K); None: query t sees the keys up to t.
    """
    compiled = kernels.are_compiled(q, k, v) and k.shape[2] <= native.MOST_KEYS
    if compiled and (q.shape[2] == k.shape[2] if mask is None else _is_one_for_all_rows(mask, q, k)):
        return _Products.apply(q, k, v, None if mask is None else _as_numbers(mask, q, k), True)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril_()
    if mask.dtype == torch.bool:
        mask = q.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    return _Products.apply(q, k, v, mask.to(q.dtype), False)


def _is_one_for_all_rows(mask: Tensor, q: Tensor, k: Tensor) -> bool:
    shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    return shape[0] == 1 and shape[1] in (1, q.shape[1]) and shape[2:] == (q.shape[2], k.shape[2])


def _as_numbers(mask: Tensor, q: Tensor, k: Tensor) -> Float[Tensor, "M T K"]:
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
    return mask.float().reshape(-1, q.shape[2], k.shape[2])


class _Products(torch.autograd.Function):
    """mask: what is added to the scores. Compiled, what lies between the products is one pass over memory, and None is
    a mask, too: queries see the keys up to them, and the others are not looked at."""

    @staticmethod
    def forward(ctx, q, k, v, mask, compiled):
        B, H, T, d = q.shape
        q, k, v = (t.reshape(B * H, -1, d) for t in (q, k, v))
        ctx.scale, ctx.causal, ctx.compiled = d**-0.5, mask is None, compiled
        scores = torch.bmm(q, k.mT).view(B, H, T, -1)
        if compiled:
            p = native.attention_softmax_(scores, ctx.scale, mask)
        else:
            p = torch.softmax(torch.add(mask, scores, alpha=ctx.scale, out=scores), -1)
        p = p.view(B * H, T, -1)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v).view(B, H, T, d)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, p = ctx.saved_tensors
        B, H, _, d = grad.shape
        grad = grad.reshape(B * H, -1, d)
        d_p = torch.bmm(grad, v.mT)
        if ctx.compiled:
            d_scores = native.attention_softmax_backward_(p, d_p, ctx.scale, ctx.causal)
        else:
            d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
        d_q, d_k = torch.bmm(d_scores, k), torch.bmm(d_scores.mT, q)
        if not ctx.compiled:
            # Of the narrow side: fewer numbers.
            d_q, d_k = d_q.mul_(ctx.scale), d_k.mul_(ctx.scale)
        return *(t.view(B, H, -1, d) for t in (d_q, d_k, torch.bmm(p.mT, grad))), None, None
