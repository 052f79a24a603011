"""The vocabulary of shapes, the State of a model, and the Batch.

Legend: B rows, T positions, D width, V vocabulary, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "B T"]
Hidden = Float[Tensor, "B T D"]
Logits = Float[Tensor, "B T V"]
NLL = Float[Tensor, "B T"]
Mask = Bool[Tensor, "B T"]

# A nested tuple of tensors, each with batch first, or None for the start of text.
# A row whose tensors are all zero stands for the start of text too, in every model.
State = Any


# Apple's GPU.
WITHOUT_FLOAT64 = ("mps",)


def for_float64(tensor: Tensor) -> Tensor:
    """The tensor where it can be worked on in float64: on its device, or, of one that has none, on the CPU."""
    return tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor


def leaves_float64(move: Callable[[Tensor], Tensor]) -> bool:
    """Whether `move`, as `nn.Module._apply` is given it, is to a device that has no float64."""
    return move(torch.zeros(1)).device.type in WITHOUT_FLOAT64


def map_state(f: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply `f` to every tensor of a state."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return f(state)
    return tuple(map_state(f, part) for part in state)


def detach(state: State) -> State:
    """The same state without its history: the truncation of truncated back-propagation through time."""
    return map_state(Tensor.detach, state)


def select(state: State, rows: Int[Tensor, " N"]) -> State:
    """The state of the given rows, in that order and with repeats (beam search reorders with it)."""
    return map_state(lambda t: t.index_select(0, rows), state)


def expand(state: State, n: int) -> State:
    """Each row repeated `n` times, neighbours together: (B, ...) -> (B * n, ...)."""
    return map_state(lambda t: t.repeat_interleave(n, 0), state)


def join(states: list[State]) -> State:
    """The states of consecutive rows as one."""
    if len(states) == 1 or states[0] is None:
        return states[0]
    if isinstance(states[0], Tensor):
        return torch.cat(states)
    return tuple(join(list(parts)) for parts in zip(*states, strict=True))


def reset(state: State, rows: Bool[Tensor, " B"]) -> State:
    """Put the marked rows at the start of text. Where `rows` is on the CPU, no GPU is waited for."""
    if state is None or not bool(rows.any()):
        return state
    if bool(rows.all()):
        return None
    return map_state(lambda t: t.masked_fill(rows.to(t.device).view(-1, *[1] * (t.ndim - 1)), 0), state)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, which nobody waits for: a GPU takes from pinned memory alone while we go on."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of text to predict.

    inputs, targets: (B, T); targets[b, t] follows inputs[b, t].
    mask: (B, T), True where the target counts; None when all do.
    reset: (B,), True where the row starts new text; None when every row does. It stays on the CPU, which decides by it.
    counts: (B, 3), bytes, characters and words of the source that each row's counted targets cover.
    starts: (B,), the place of each row's first target in its split; on the CPU. None where nobody will ask.
    charges: (B, T), nats that a target costs besides its own nll, whatever the model (letters of an <unk>); None: none.
    lengths: (B,), how many targets count at the head of each row, where `mask` says no more; it stays on the CPU. None
        where it does, and where there is no mask.
    lr_scale: multiplies the learning rate of this step (AWD-LSTM's random lengths).
    """

    inputs: Tokens
    targets: Tokens
    mask: Mask | None = None
    reset: Bool[Tensor, " B"] | None = None
    counts: Int[Tensor, "B 3"] | None = None
    lr_scale: float = 1.0
    starts: Int[Tensor, " B"] | None = None
    charges: NLL | None = None
    lengths: Int[Tensor, " B"] | None = None

    def _map(self, f: Callable[[Tensor], Tensor], *names: str) -> "Batch":
        return replace(self, **{n: f(t) for n in names if (t := getattr(self, n)) is not None})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        if self.inputs.device == torch.device(device):
            return self
        device, names = torch.device(device), ("inputs", "targets", "mask", "counts", "charges")
        return self._map(lambda t: send(t, device) if non_blocking else t.to(device), *names)

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows [start, stop): how ranks and micro-batches share one global batch."""
        if start == 0 and stop >= self.inputs.shape[0]:
            return self
        names = ("inputs", "targets", "mask", "reset", "counts", "starts", "charges", "lengths")
        return self._map(lambda t: t[start:stop], *names)

    @property
    def counted(self) -> Mask:
        """Which targets count: the mask, also where it is None."""
        return torch.ones_like(self.targets, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def n_targets(self) -> int:
        """Targets that count, in all rows."""
        return self.targets.numel() if self.mask is None else int(self.mask.sum())
