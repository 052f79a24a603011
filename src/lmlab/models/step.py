"""One token of each row through all blocks of a Transformer in one call, while a text is written."""

from collections.abc import Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from lmlab import native
from lmlab.models import kernels
from lmlab.models.attention import KV, Attention, Placement
from lmlab.models.dropout import Dropout
from lmlab.models.layers import MLP, LayerNorm, Linear, RMSNorm, SwiGLU
from lmlab.models.mask_pool import PooledDropout
from lmlab.models.transformer import Block, TransformerLM
from lmlab.native import step as compiled
from lmlab.types import Hidden


def can_step(model: nn.Module) -> bool:
    """Whether there is such a call for this model: one of ours, at rest, whose modules nobody watches or replaced."""
    if type(model) is not TransformerLM or not kernels.may_be_ours(model.norm.weight.device):
        return False
    weights = list(model.blocks.parameters())
    alike = all(w.dtype is torch.float32 for w in weights) and native.serves(*weights)
    return alike and not _everywhere() and all(map(_is_known, model.blocks.modules())) and _common(model) is not None


def _everywhere() -> bool:
    """Whether somebody watches all modules there are."""
    every = nn.modules.module
    return bool(every._global_forward_hooks or every._global_forward_pre_hooks)


def _is_known(part: nn.Module) -> bool:
    """Whether a step computes what this does."""
    if part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__:
        return False
    if type(part) is Block:
        return type(part.attention) in (NoneType, Attention) and type(part.mlp) in (NoneType, MLP, SwiGLU)
    if type(part) is Attention:
        return part.kernel == "auto"
    if type(part) in (RMSNorm, LayerNorm):
        return part.weight is not None and part.eps is not None
    # Not a kind of these, which may compute otherwise.
    return type(part) in (nn.ModuleList, Linear, MLP, SwiGLU, Dropout, PooledDropout)


def _common(model: TransformerLM) -> dict[str, Any] | None:
    """What a step knows once for all blocks; None where they differ in it, which no option makes them."""
    heads, mlps, norms, fits = set(), set(), set(), True
    for block in model.blocks:
        if (attention := block.attention) is not None:
            heads.add((attention.n_heads, attention.n_kv_heads, attention.d_head))
            rows = attention.d_head * attention.n_heads
            fits &= attention.out.weight.shape == (model.d_model, rows)
            fits &= attention.qkv.weight.shape == (rows + 2 * attention.d_head * attention.n_kv_heads, model.d_model)
            for norm in (n for n in (attention.q_norm, attention.k_norm) if n is not None):
                norms.add((type(norm), norm.eps))
                fits &= norm.weight.shape == (attention.d_head,) and getattr(norm, "bias", None) is None
        if (mlp := block.mlp) is not None:
            mlps.add((mlp.up.out_features, getattr(mlp, "activation", "swiglu")))
            fits &= mlp.down.weight.shape == (model.d_model, mlp.up.out_features)
            fits &= all(
                part.weight.shape == (mlp.up.out_features, model.d_model)
                for name, part in mlp.named_children()
                if name != "down"
            )
        for norm in (n for n in (block.attention_norm, block.mlp_norm) if n is not None):
            norms.add((type(norm), norm.eps))
            fits &= norm.weight.shape == (model.d_model,)
    if not fits or len(heads) != 1 or len(norms) != 1 or len(mlps) > 1:
        return None
    ((n_heads, n_kv_heads, d_head),), ((norm, eps),) = heads, norms
    d_ff, activation = next(iter(mlps), (0, "swiglu"))
    return {
        "width": model.d_model, "heads": n_heads, "kv_heads": n_kv_heads, "d_head": d_head, "d_ff": d_ff,
        "activation": compiled.ACTIVATIONS.index(activation), "centred": norm is LayerNorm, "eps": eps,
    }  # fmt: skip


class Step:
    """What takes the place of a model's `through`, for one token of each row at one position of all rows, without
    gradients; for anything else it calls that. A row's numbers do not depend on what other rows there are.

    dtype: of the copies of all matrices that it holds, and of a cache that it goes on from and writes in place. What
    goes from operation to operation is fp32. Several threads may call it.
    """

    def __init__(self, model: TransformerLM, dtype: torch.dtype):
        self.model, self.dtype, self.common = model, dtype, _common(model)
        linears = [part for part in model.blocks.modules() if type(part) is Linear]
        weights = compiled.in_strips([part.weight.detach() for part in linears], dtype)
        self.strips = dict(zip(linears, weights, strict=True))
        # Whatever else the blocks point to.
        self.kept: list[Tensor] = []
        self.blocks = (compiled.Block * len(model.blocks))()
        for theirs, block in zip(self.blocks, model.blocks, strict=True):
            for name, tensor in self._tensors(block).items():
                self.kept.append(tensor)
                setattr(theirs, name, tensor.data_ptr())
        self.with_cache = [i for i, block in enumerate(model.blocks) if block.attention is not None]

    def _tensors(self, block: Block) -> dict[str, Tensor]:
        """By the names of `compiled.Block`, without what is None."""
        parts: dict[str, nn.Module | None] = {"attention_norm": block.attention_norm, "mlp_norm": block.mlp_norm}
        if (attention := block.attention) is not None:
            parts |= {name: getattr(attention, name) for name in ("qkv", "q_norm", "k_norm", "out")}
        if block.mlp is not None:
            parts |= dict(block.mlp.named_children())
        found = {}
        for name, part in parts.items():
            if part is None:
                continue
            found[name] = self.strips[part] if part in self.strips else part.weight.detach().contiguous()
            if (bias := getattr(part, "bias", None)) is not None:
                found[f"{name}_bias"] = bias.detach().contiguous()
        return found

    def __call__(self, x: Hidden, place: Placement, past: Sequence[KV]) -> tuple[Hidden, tuple[KV, ...]]:
        if not self._serves(x, place, past):
            return type(self.model).through(self.model, x, place, past)
        past = tuple((k.contiguous(), v.contiguous()) for k, v in past)
        blocks = type(self.blocks).from_buffer_copy(self.blocks)
        for i, cache in zip(self.with_cache, past, strict=True):
            blocks[i].keys, blocks[i].values = (t.data_ptr() for t in cache)
        # It becomes the result, and may be a table's row.
        x = x.clone(memory_format=torch.contiguous_format)
        step = compiled.Step(rows=len(x), slots=past[0][0].shape[2], **self.common)
        step.used, step.slot = min(place.level + 1, place.band), place.level % place.band
        cos, sin = (None, None) if place.rotary is None else place.rotary
        given = {"cos": cos, "sin": sin, "mask": place.first, "scratch": x.new_empty(compiled.scratch_size(step))}
        given = {name: t.float().contiguous() for name, t in given.items() if t is not None}
        for name, tensor in given.items():
            setattr(step, name, tensor.data_ptr())
        compiled.run(blocks, step, x, self.dtype)
        return x, past

    def _serves(self, x: Hidden, place: Placement, past: Sequence[KV]) -> bool:
        if place.level is None or x.dtype is not torch.float32 or self.model.training:
            return False
        shape = (len(x), self.common["kv_heads"], past[0][0].shape[2], self.common["d_head"])
        room = min(place.level + 1, place.band) <= shape[2]
        return room and all(t.shape == shape and t.dtype is self.dtype for cache in past for t in cache)
