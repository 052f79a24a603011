"""Parameter groups, and the optimizers that torch lacks: Muon with AdamW in one, and NT-ASGD."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lmlab.models import kernels

# What weight decay applies to.
DECAYED = ("all", "weights", "hidden")
SCALES = ("original", "match_rms_adamw")
# The quintic of the Newton-Schulz iteration, steepest at zero: Jordan 2024, https://kellerjordan.github.io/posts/muon/
QUINTIC = (3.4445, -4.7750, 2.0315)
# Rows from which on a processor multiplies bfloat16 faster: 1.5 times at 128 (AVX-512), slower below.
LARGE = 128


def parameter_groups(model: nn.Module, decay: str) -> list[dict[str, Any]]:
    """Groups for any optimizer of torch's kind. Groups without weight decay say `weight_decay` 0, others leave it out.

    decay: `all` parameters; `weights`, matrices but no vectors (norms, biases); `hidden`, matrices but neither
    embeddings nor the head. Each group states `hidden`: whether it holds matrices between embedding and head.
    """
    if decay not in DECAYED:
        raise ValueError(f"training.decay={decay!r} must be one of {', '.join(DECAYED)}")
    outer = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    if isinstance(head := getattr(model, "head", None), nn.Module):
        outer |= {id(p) for p in head.parameters()}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim >= 2 and id(parameter) not in outer
        decayed = {"all": True, "weights": parameter.ndim >= 2, "hidden": hidden}[decay]
        groups.setdefault((hidden, decayed), []).append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameters to train; fit it with its own model option")
    return [
        {"params": parameters, "hidden": hidden} | ({} if decayed else {"weight_decay": 0.0})
        # The matrices first: the first group's learning rate is the one that people look at.
        for (hidden, decayed), parameters in sorted(groups.items(), key=lambda item: not item[0][0])
    ]


def build(make: Callable[..., torch.optim.Optimizer], decay: str, model: nn.Module) -> torch.optim.Optimizer:
    """make(groups) for the model's parameters. Each group keeps its `initial_lr`, which schedules scale."""
    optimizer = make(parameter_groups(model, decay))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices and AdamW for everything else, in one step (Jordan 2024).

    The matrix update is Nesterov momentum, orthogonalised: all singular values about 1. `scale` then multiplies it:
    `original`, sqrt(max(1, rows / columns)); `match_rms_adamw`, 0.2 sqrt(max(rows, columns)), which gives it the size
    of an AdamW update, so that AdamW's lr and weight_decay fit (Liu et al. 2025, arXiv 2502.16982, section 2.2).
    Weight decay is decoupled. lr, momentum, ns_steps, scale, weight_decay: of groups with `hidden` True, whose
    parameters are matrices or stacks of them. adam_*: of all other groups. Matrices of one shape, turned so that
    rows <= columns, are orthogonalised in one batched product: in bfloat16 where the hardware has units for it and, on
    a processor, the matrices are large enough; with kernels=plain in float32.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        ns_steps: int,
        scale: str,
        weight_decay: float,
        adam_lr: float,
        adam_betas: Sequence[float],
        adam_eps: float,
        adam_weight_decay: float,
    ):
        if scale not in SCALES:
            raise ValueError(f"optimizer.scale={scale!r} must be one of {', '.join(SCALES)}")
        for key, value in (("lr", lr), ("adam_lr", adam_lr), ("ns_steps", ns_steps)):
            if value < 0:
                raise ValueError(f"optimizer.{key}={value} must not be negative")
        muon = {"lr": lr, "momentum": momentum, "ns_steps": ns_steps, "scale": scale, "weight_decay": weight_decay}
        # `fused` also tells torch to load the count of steps back as it was: a tensor beside the parameter.
        adam = {
            "lr": adam_lr,
            "betas": tuple(adam_betas),
            "eps": adam_eps,
            "weight_decay": adam_weight_decay,
            "fused": True,
        }
        groups = [(muon if group["hidden"] else adam) | group for group in params]
        for group in groups:
            if group["hidden"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("a group with hidden=True holds a vector; Muon is for matrices alone")
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Over all groups at once, so that shapes are stacked whatever their weight decay.
        updates: dict[tuple, list[tuple[Tensor, Tensor, float]]] = {}
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            if not with_grad:
                continue
            if group["hidden"]:
                self._momentum(group, with_grad, updates)
            else:
                self._adam(group, with_grad)
        for (*_, ns_steps), same_shape in updates.items():
            _orthogonal_step(same_shape, ns_steps)
        return loss

    def _momentum(self, group: dict[str, Any], parameters: list[Tensor], updates: dict) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in parameters]
        buffers = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for p, update in zip(parameters, nesterov, strict=True):
            rows, columns = p.shape[-2:]
            step = group["lr"] * _scale(group["scale"], rows, columns)
            key = (min(rows, columns), max(rows, columns), p.device, p.dtype, group["ns_steps"])
            updates.setdefault(key, []).append((p, update, step))

    def _adam(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        adamw(
            parameters,
            [p.grad for p in parameters],
            *([self.state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq")),
            [],
            [self.state[p]["step"] for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _scale(scale: str, rows: int, columns: int) -> float:
    if scale == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def _orthogonal_step(same_shape: list[tuple[Tensor, Tensor, float]], ns_steps: int) -> None:
    """p -= step * orthogonalised update, for (p, update, step) of one shape up to transposition."""
    wide = []
    for p, update, _ in same_shape:
        matrices = update.reshape(-1, *p.shape[-2:])
        wide.append(matrices.mT if p.shape[-2] > p.shape[-1] else matrices)
    orthogonal = newton_schulz(torch.cat(wide), ns_steps)
    counts = [len(w) for w in wide]
    for (p, _, step), part in zip(same_shape, orthogonal.split(counts), strict=True):
        part = part.mT if p.shape[-2] > p.shape[-1] else part
        p.add_(part.reshape(p.shape).to(p.dtype), alpha=-step)


def newton_schulz(matrices: Tensor, steps: int) -> Tensor:
    """Roughly U V^T for each U S V^T of (N, rows, columns), rows <= columns: singular values fall near 1."""
    a, b, c = QUINTIC
    device = matrices.device.type
    dtype = torch.float32 if kernels.are_plain() else _product_dtype(device, matrices.shape[-2])
    x = matrices.to(dtype)
    # The Frobenius norm bounds the largest singular value, where the iteration needs at most 1.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # Lightning steps within autocast, which would choose another type.
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


@cache
def _product_dtype(device_type: str, rows: int) -> torch.dtype:
    """bfloat16 only where the hardware multiplies it: elsewhere it is emulated, up to 100 times slower than float32."""
    if device_type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = device_type == "cpu" and units and rows >= LARGE
    return torch.bfloat16 if fast else torch.float32


class NTASGD(torch.optim.SGD):
    """Non-monotonically triggered averaged SGD (Merity et al. 2017, algorithm 1, as in the authors' code).

    Plain SGD until a check is worse than the best of all checks but the last `nonmono`; from then on the average of
    all iterates is kept too, for `averaged`. Fewer is better in checks. State is tensors and plain data.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float, nonmono: int):
        if nonmono < 1:
            raise ValueError(f"optimizer.nonmono={nonmono} must be at least 1")
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=0.0, fused=True)
        for group in self.param_groups:
            # In the groups, because these are what state_dict saves beside tensors; tuples, so that it is a copy.
            group.update(nonmono=nonmono, checks=(), triggered=False, n_averaged=0)

    @property
    def triggered(self) -> bool:
        """Whether averaging has begun."""
        return self.param_groups[0]["triggered"]

    def observe(self, metric: float) -> None:
        """Take note of a validation metric, and begin to average when it has stopped improving."""
        first = self.param_groups[0]
        earlier = first["checks"][: -first["nonmono"]]
        triggered = first["triggered"] or bool(earlier and metric > min(earlier))
        checks = (*first["checks"], float(metric))
        for group in self.param_groups:
            group.update(checks=checks, triggered=triggered)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = super().step(closure)
        if self.triggered:
            for group in self.param_groups:
                group["n_averaged"] += 1
                for p in group["params"]:
                    if "average" not in self.state[p]:
                        self.state[p]["average"] = torch.zeros_like(p)
                    self.state[p]["average"].lerp_(p, 1 / group["n_averaged"])
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters hold their averages, if there are any yet."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if (average := self.state[p].get("average")) is not None:
                    held = p.clone()
                    p.copy_(average)
                    average.copy_(held)
