"""How large a model is, and which width makes it as large as asked."""

import copy
import json
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.models.attention import Attention
from lmlab.models.head import Head

# Shares of n_params by which a solved width may miss it: unsaid, and at all.
NEAR, FAR = 0.01, 0.1
# Beyond it no width is looked for that could be built.
WIDEST = 2**16
# {(a model's config, the size asked for, what else it was built from): the config with its width}. Once a process: of a
# sweep's trials most ask for the same, and a Transformer's takes a quarter of a second.
_solved: dict[tuple[str, int, Hashable], dict[str, Any]] = {}
# What fills a tensor with first values.
FILLS = {getattr(nn.init, f"{name}_") for name in ("normal", "uniform", "zeros", "ones", "constant", "trunc_normal")}
FILLS |= {getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "zero", "fill")}


class _Unfilled(TorchFunctionMode):
    """Within, tensors get no first values: where only shapes count, on the meta device, that took most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # torch.nn.init hands its tensor over by name.
        return (args or tuple(kwargs.values()))[0] if func in FILLS else func(*args, **kwargs)


def count_parameters(model: nn.Module) -> int:
    """Trained numbers, a tied matrix once."""
    return sum(p.numel() for p in model.parameters())


def missed_size(wanted: int, found: int, d_model: int) -> str | None:
    """What is said of a solved width whose size is not quite the one asked for."""
    if abs(found - wanted) <= NEAR * wanted:
        return None
    return f"n_params {found:,}: no width is nearer to the {wanted:,} asked for than {d_model}"


def embedding_share(model: nn.Module) -> float:
    """Share of the parameters that stand in tables with a row for each token: embeddings and an output layer."""
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings >= model.vocab_size]
    # Learned positions are rows of a context, which may be longer than a small vocabulary.
    tables = [m.weight for m in embeddings if m is not getattr(model, "position_embed", None)]
    tables += model.head.tables() if isinstance(model.head, Head) else []
    # A tied matrix once.
    return sum(p.numel() for p in {id(p): p for p in tables}.values()) / max(count_parameters(model), 1)


def flops_per_token(model: nn.Module, length: int) -> int:
    """Floating-point operations to train on one token of a row of `length`: 6 N + 12 L H Q T.

    Chowdhery et al. 2022 (PaLM), appendix B. N: parameters without tables that are only looked up; a table that the
    head shares is multiplied by, and counts; those of the head as often as it multiplies by them. L H Q: layers, heads
    and their width, summed over the attention layers. T: positions attended to, the causal half that is masked
    included; at most the window.
    """
    head = {id(p): p for p in model.head.parameters()}
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    body = sum(p.numel() for p in model.parameters() if id(p) not in head and id(p) not in tables)
    of_head = model.head.multiplied() if isinstance(model.head, Head) else sum(p.numel() for p in head.values())
    widths = sum(m.n_heads * m.d_head for m in model.modules() if isinstance(m, Attention))
    return round(6 * (body + of_head)) + 12 * widths * min(length, getattr(model, "band", length))


def solve_width(
    node: Mapping[str, Any],
    n_params: int,
    build: Callable[[Mapping[str, Any]], nn.Module],
    known: Hashable = None,
) -> dict[str, Any]:
    """The model's config with the width whose size is nearest to `n_params`: within 1 % from 350 thousand on.

    A width that heads must divide moves in steps of 2 * n_heads; the feed-forward width then makes up the rest. A small
    model without one may end FAR off: one more of its width is that much. Raises ValueError when the vocabulary alone
    exceeds the size, or no width comes within FAR. known: what `build` goes by beside the node, by which the answer is
    remembered; None: it is not.
    """
    key = (json.dumps(dict(node), sort_keys=True, default=str), n_params, known)
    if key not in _solved:
        found = _solve(node, n_params, build)
        if known is None:
            return found
        _solved[key] = found
    return copy.deepcopy(_solved[key])


def _solve(node: Mapping[str, Any], n_params: int, build: Callable[[Mapping[str, Any]], nn.Module]) -> dict[str, Any]:
    if "d_model" not in node:
        raise ValueError(f"n_params={n_params:,}, but {node['_target_']} has no d_model to choose")

    def sized(**changes: int) -> tuple[dict[str, Any], int]:
        changed = {**node, **changes}
        with torch.device("meta"), _Unfilled():
            return changed, count_parameters(build(changed))

    unit = 2 * node["n_heads"] if "n_heads" in node else 1
    widths = [k for k in ("d_model", "d_embed", "d_hidden") if node.get(k) is not None]
    ratio = {k: node[k] / node["d_model"] for k in widths}

    def at(width: int, **changes: int) -> tuple[dict[str, Any], int]:
        # Other widths keep their proportion to d_model.
        return sized(**{k: max(1, round(width * r)) for k, r in ratio.items()}, **changes)

    first = _narrowest(lambda k: at(k * unit), unit)
    smallest = at(first * unit)[1]
    if smallest > n_params:
        raise ValueError(
            f"n_params={n_params:,} is below the {smallest:,} that the vocabulary and depth take at "
            f"d_model={first * unit}; ask for more, or use a smaller tokenizer.vocab_size"
        )
    low, high = first, 2 * first
    while at(high * unit)[1] <= n_params:
        low, high = high, 2 * high
    low = _largest(low, high, lambda k: at(k * unit)[1] <= n_params)
    nearest = min((at(k * unit) for k in (low, low + 1)), key=lambda pair: abs(pair[1] - n_params))
    if abs(nearest[1] - n_params) > 0.002 * n_params and "d_ff" in node:
        # d_model rounded down leaves room that the feed-forward layers take up.
        width = low * unit
        most = _largest(1, 64 * width, lambda d_ff: at(width, d_ff=d_ff)[1] <= n_params)
        options = [at(width, d_ff=d_ff) for d_ff in (most, most + 1)]
        nearest = min([nearest, *options], key=lambda pair: abs(pair[1] - n_params))
    if abs(nearest[1] - n_params) > FAR * n_params:
        raise ValueError(
            f"n_params={n_params:,}: the nearest width gives {nearest[1]:,}, more than {FAR:.0%} off; ask for that"
        )
    return nearest[0]


def _narrowest(build: Callable[[int], Any], unit: int) -> int:
    """The smallest k that builds: the clusters of an adaptive softmax are narrower than the model."""

    def fails(k: int) -> ValueError | None:
        try:
            build(k)
        except ValueError as error:
            return error
        return None

    reason = fails(1)
    if reason is None:
        return 1
    high = 2
    while fails(high) is not None:
        high *= 2
        if high * unit > WIDEST:
            # It is not the width that is wrong.
            raise reason
    return 1 + _largest(high // 2, high, lambda k: fails(k) is not None)


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest k in [low, high) that fits, where low fits."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
