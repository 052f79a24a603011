"""One token of each row through all blocks of a Transformer in one call, while a text is written."""

from collections.abc import Sequence
from types import NoneType

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
    return alike and all(map(_is_known, model.blocks.modules()))


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


class Step:
    """What takes the place of a model's `through`, for one token of each row at one position of all rows, without
    gradients; for anything else it calls that. A row's numbers do not depend on what other rows there are.

    dtype: of the copies of all matrices that it holds, and of a cache that it goes on from and writes in place. What
    goes from operation to operation is fp32.
    """

    def __init__(self, model: TransformerLM, dtype: torch.dtype):
        self.model, self.dtype = model, dtype
        # Whatever the blocks point to.
        self.kept: list[Tensor] = []
        self.blocks = (compiled.Block * len(model.blocks))()
        for theirs, block in zip(self.blocks, model.blocks, strict=True):
            for name, tensor in self._tensors(block).items():
                self.kept.append(tensor)
                setattr(theirs, name, tensor.data_ptr())
        attention = next(b.attention for b in model.blocks if b.attention is not None)
        mlp = next((b.mlp for b in model.blocks if b.mlp is not None), None)
        self.has_cache = [block.attention is not None for block in model.blocks]
        self.step = compiled.Step(
            width=model.d_model,
            heads=attention.n_heads,
            kv_heads=attention.n_kv_heads,
            d_head=attention.d_head,
            d_ff=0 if mlp is None else mlp.up.out_features,
            activation=compiled.ACTIVATIONS.index(getattr(mlp, "activation", "swiglu")),
            centred=type(model.norm) is LayerNorm,
            eps=model.norm.eps,
        )
        self.scratch = torch.empty(0)

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
            is_matrix = isinstance(part, nn.Linear)
            found[name] = compiled.in_strips(part.weight, self.dtype) if is_matrix else part.weight.detach()
            if (bias := getattr(part, "bias", None)) is not None:
                found[f"{name}_bias"] = bias.detach()
        return found

    def __call__(self, x: Hidden, place: Placement, past: Sequence[KV]) -> tuple[Hidden, tuple[KV, ...]]:
        if place.level is None or x.dtype is not torch.float32 or any(t.dtype is not self.dtype for t in past[0]):
            return type(self.model).through(self.model, x, place, past)
        past = tuple((k.contiguous(), v.contiguous()) for k, v in past)
        caches = iter(past)
        for block, has_cache in zip(self.blocks, self.has_cache, strict=True):
            if has_cache:
                block.keys, block.values = (t.data_ptr() for t in next(caches))
        # It becomes the result, and may be a table's row.
        x = x.clone(memory_format=torch.contiguous_format)
        step, (rotary, mask) = self.step, (place.rotary, place.first)
        step.rows, step.slots = len(x), past[0][0].shape[2]
        step.used, step.slot = min(place.level + 1, place.band), place.level % place.band
        step.cos, step.sin = (None, None) if rotary is None else (t.data_ptr() for t in rotary)
        step.mask = None if mask is None else mask.data_ptr()
        if len(self.scratch) < (needed := compiled.scratch_size(step)):
            # Room for what it grows by, too.
            self.scratch = torch.empty(2 * needed)
        step.scratch = self.scratch.data_ptr()
        compiled.run(self.blocks, step, x, self.dtype)
        return x, past
