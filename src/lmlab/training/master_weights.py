"""Weights held twice: bf16 copies for forward and backward, fp32 masters for everything else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Numbers in a matrix whose gradient is moved as soon as it is there, and not with all the others: a step then never
# holds all gradients twice. Smaller ones are moved faster together.
LARGE = 2**18


class MasterWeights:
    """Mixed precision with fp32 master weights (Micikevicius et al. 2018, section 3.1), for training on one device.

    Autocast casts every weight at every use; here the copies are refreshed once a step, and between steps nobody
    sees them: optimizer, checkpoints, averaging and evaluation have the masters. Embedding tables have no copy. A
    lookup reads few rows and its gradient adds up many, so the model looks up in fp32 and casts what it found.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.bfloat16):
        tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        copies = _in_one_piece(model, dtype)
        # Where each parameter stands, a shared one more than once: module, name, master, copy.
        self._places: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is None or id(p) in tables or p.dtype is not torch.float32:
                    continue
                if id(p) not in copies:
                    copies[id(p)] = nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad)
                self._places.append((module, name, p, copies[id(p)]))
        pairs = {id(p): (p, copy) for _, _, p, copy in self._places}
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = list(pairs.values())
        # One buffer for each gradient of a master, kept from step to step.
        self._buffers: dict[int, Tensor] = {}
        for p, copy in self._pairs:
            if copy.requires_grad and copy.numel() >= LARGE:
                copy.register_post_accumulate_grad_hook(lambda _, pair=(p, copy): self._move([pair]))

    @contextmanager
    def halved(self) -> Iterator[None]:
        """Within, the model computes with fresh copies. `collect` after each backward pass inside."""
        with torch.no_grad():
            torch._foreach_copy_([copy for _, copy in self._pairs], [p for p, _ in self._pairs])
        for module, name, _, copy in self._places:
            _put(module, name, copy)
        try:
            yield
        finally:
            for module, name, p, _ in self._places:
                _put(module, name, p)

    def collect(self) -> None:
        """Move the copies' gradients to the masters', adding in fp32 to what those have."""
        self._move(self._pairs)

    @torch.no_grad()
    def _move(self, pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
        first: tuple[list[Tensor], list[Tensor]] = ([], [])
        more: tuple[list[Tensor], list[Tensor]] = ([], [])
        for p, copy in pairs:
            if copy.grad is None:
                continue
            ours, theirs = first if p.grad is None else more
            if p.grad is None:
                if id(p) not in self._buffers:
                    self._buffers[id(p)] = torch.empty_like(p)
                p.grad = self._buffers[id(p)]
            ours.append(p.grad)
            theirs.append(copy.grad)
            copy.grad = None
        if first[0]:
            torch._foreach_copy_(*first)
        if more[0]:
            torch._foreach_add_(*more)


def _in_one_piece(model: nn.Module, dtype: torch.dtype) -> dict[int, nn.Parameter]:
    """Copies of the parameters of each recurrent layer on a GPU, by the id of what they copy: views of one buffer in
    cuDNN's order, which else puts them together at every call, and warns."""
    copies: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if not isinstance(module, nn.RNNBase) or next(module.parameters()).device.type == "cpu":
            continue
        masters = list(module.parameters())
        flat = torch.cat([p.detach().flatten() for p in masters]).to(dtype)
        for p, part in zip(masters, flat.split([p.numel() for p in masters]), strict=True):
            copies[id(p)] = nn.Parameter(part.view_as(p), requires_grad=p.requires_grad)
    return copies


def _put(module: nn.Module, name: str, p: nn.Parameter) -> None:
    if isinstance(module, nn.RNNBase):
        # It keeps a second list of its weights, which only this updates.
        setattr(module, name, p)
    else:
        module._parameters[name] = p
