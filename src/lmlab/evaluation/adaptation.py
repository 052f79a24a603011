"""What may be done besides reading: temperature, averaged dropout, weights that learn on, a cache; and its tuning."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from lmlab.evaluation.cache import THETAS, Cache, read_remembering
from lmlab.evaluation.dynamic import Dynamic, gradient_rms
from lmlab.evaluation.evaluate import evaluate, read, score_batch
from lmlab.evaluation.mixture import best_weight
from lmlab.evaluation.protocol import Protocol
from lmlab.models.precision import using
from lmlab.types import NLL, Batch, State, for_float64

# Tried at once on val; the best is then found between them.
TEMPERATURES = (0.6, 0.7, 0.78, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.18, 1.28, 1.42, 1.6, 1.8)
# Times that val is read for a temperature beyond them: 0.6 ** 4 is 0.13, 1.8 ** 4 is 10.
ROUNDS = 4
# Places after the point to which what was tuned is rounded before it is used, so that the record is exact.
ROUNDED = 4

# (split, tokens, width) -> batches of the first (of train: the last) so many tokens, read `width` at a time.
Rows = Callable[[str, int, int | None], Iterable[Batch]]


@dataclass(frozen=True)
class Adaptation:
    """How tokens are scored, and the record of it. score: as `score_batch`. samples: of dropout, None for none."""

    score: Callable[..., tuple[NLL, State]]
    options: Mapping[str, Any]
    samples: int | None = None
    seed: int = 0

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, the model may change; after it is as it was."""
        with self.score.learning(model) if isinstance(self.score, Dynamic) else nullcontext():
            yield


def adapt(
    wanted: Mapping[str, Any], model: nn.Module, protocol: Protocol, rows: Rows, device: str, batch_size: int
) -> Adaptation | None:
    """What the keys of conf/evaluate.yaml ask for (`check` them first), tuned on val where they say auto; None when
    nothing is asked."""
    options: dict[str, Any] = {}
    tokens, tuned = wanted["tune_tokens"], {"tuned_on": f"val:{wanted['tune_tokens']}"}
    score: Callable[..., tuple[NLL, State]] = score_batch
    temperature, cache, dynamic = wanted["temperature"], wanted["cache"], wanted["dynamic"]
    if temperature is not None:
        value = temperature
        if value == "auto":
            value = tune_temperature(model, partial(rows, "val", tokens, None), protocol.precision, device)
        options["temperature"] = {"value": float(value)} | (tuned if temperature == "auto" else {})
        temperature = float(value)
        score = Tempered(temperature)
    if cache["size"] is not None:
        theta, weight = cache["theta"], cache["weight"]
        if "auto" in (theta, weight):
            found = CacheProbe(cache["size"], THETAS if theta == "auto" else (float(theta),), temperature or 1.0)
            evaluate(model, rows("val", tokens, None), protocol.precision, device, score=found)
            theta, weight = found.best(None if weight == "auto" else float(weight))
        options["cache"] = {"size": cache["size"], "theta": float(theta), "weight": float(weight)}
        options["cache"] |= tuned if "auto" in (cache["theta"], cache["weight"]) else {}
        score = Cache(cache["size"], float(theta), float(weight), temperature or 1.0)
    if dynamic["lr"] is not None:
        train = rows("train", dynamic["train_tokens"], dynamic["segment"])
        rms = gradient_rms(model, (batch.to(device) for batch in train), protocol.precision)
        score = Dynamic(rms, dynamic["lr"], dynamic["decay"], dynamic["segment"], dynamic["epsilon"], score)
        options["dynamic"] = dict(dynamic)
    samples = wanted["mc_dropout"]["samples"]
    if samples is not None:
        # Masks are drawn a batch at a time: here, and only here, what batch_size says is part of the number.
        options["mc_dropout"] = {**wanted["mc_dropout"], "batch_size": batch_size}
    return Adaptation(score, options, samples, wanted["mc_dropout"]["seed"]) if options else None


def check(wanted: Mapping[str, Any], protocol: Protocol) -> None:
    """Before anything is measured or tuned: raises ValueError for what cannot be."""
    cache = wanted["cache"]
    tuned = {"temperature": wanted["temperature"], "cache.theta": cache["theta"], "cache.weight": cache["weight"]}
    for key, value in tuned.items():
        if isinstance(value, str) and value != "auto":
            raise ValueError(f"{key}={value} must be a number, or auto")
    temperature = wanted["temperature"]
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0, or auto")
    if cache["size"] is not None:
        if protocol.stride is not None:
            raise ValueError(
                f"cache.size={cache['size']} needs a state that is carried through the text, and {protocol.name} "
                "slides: add evaluation=carried"
            )
        Cache(cache["size"], *(0.0 if cache[key] == "auto" else float(cache[key]) for key in ("theta", "weight")))
    if wanted["dynamic"]["lr"] is None:
        return
    if (protocol.policy, protocol.lanes) != ("carried", 1):
        raise ValueError(
            f"dynamic.lr={wanted['dynamic']['lr']} reads the text once, in its order, and {protocol.name} does not: "
            "add evaluation=carried evaluation.lanes=1"
        )
    if wanted["mc_dropout"]["samples"] is not None:
        raise ValueError("dynamic.lr and mc_dropout.samples exclude each other: leave one of them null")


class Tempered:
    """Scores as `score_batch` does, the logits divided by a temperature."""

    def __init__(self, temperature: float):
        self.temperature = temperature

    def __call__(self, model: nn.Module, batch: Batch, state: State, precision: str) -> tuple[NLL, State]:
        nll, _, state = read(model, batch, state, precision, self.temperature)
        return nll, state


class TemperatureProbe:
    """Scores as `score_batch` does, and adds up what each temperature would have cost."""

    def __init__(self, temperatures: tuple[float, ...]):
        self.temperatures = np.array(sorted(temperatures))
        self.nats = np.zeros(len(temperatures))

    def __call__(self, model: nn.Module, batch: Batch, state: State, precision: str) -> tuple[NLL, State]:
        nll, hidden, state = read(model, batch, state, precision)
        with using(precision, batch.inputs.device):
            logits = model.head.logits(hidden[batch.counted][None]).float()[0]
        target = logits.gather(-1, batch.targets[batch.counted][:, None])[:, 0]
        for i, t in enumerate(self.temperatures):
            cost = (logits / t).logsumexp(-1) - target / t
            self.nats[i] += float(for_float64(cost).sum(dtype=torch.float64))
        return nll, state

    def best(self) -> float:
        """The cost is convex in 1/T: the lowest of a parabola through the three best, in 1/T."""
        i = int(self.nats.argmin())
        if i in (0, len(self.nats) - 1):
            return float(self.temperatures[i])
        x, y = 1 / self.temperatures[i - 1 : i + 2], self.nats[i - 1 : i + 2]
        square, slope, _ = np.polyfit(x - x[1], y - y[1], 2)
        return float(round(1 / (x[1] - slope / (2 * square)), ROUNDED))


def tune_temperature(model: nn.Module, batches: Callable[[], Iterable[Batch]], precision: str, device: str) -> float:
    """The temperature by which these batches cost least. They are read again where it is one of the outermost tried."""
    tried = TEMPERATURES
    for _ in range(ROUNDS):
        probe = TemperatureProbe(tried)
        evaluate(model, batches(), precision, device, score=probe)
        best = probe.best()
        if min(tried) < best < max(tried):
            break
        tried = tuple(best * t for t in TEMPERATURES)
    return round(best, ROUNDED)


class CacheProbe:
    """Scores as the model alone does, and remembers what a cache would have said under each theta."""

    def __init__(self, size: int, thetas: tuple[float, ...], temperature: float):
        self.thetas, self.temperature = thetas, temperature
        self._cache = Cache(size, thetas[0], 0.0, temperature)
        self._nll: list[np.ndarray] = []
        self._pointed: list[list[np.ndarray]] = [[] for _ in thetas]

    def __call__(self, model: nn.Module, batch: Batch, state: State, precision: str) -> tuple[NLL, State]:
        nll, hidden, state, memory = read_remembering(model, batch, state, precision, self.temperature)
        pointed, memory = self._cache.point(hidden, batch, memory, self.thetas)
        self._nll.append(nll[batch.counted].cpu().numpy())
        for kept, log_p in zip(self._pointed, pointed, strict=True):
            kept.append(log_p[batch.counted].cpu().numpy())
        return nll, (state, memory)

    def best(self, stated: float | None) -> tuple[float, float]:
        """The theta and weight by which these tokens cost least; where the cache is empty nothing is to be weighed.

        stated: the one weight that is used; None: each theta has its own best.
        """
        nll = np.concatenate(self._nll).astype(np.float64)
        found = []
        for theta, parts in zip(self.thetas, self._pointed, strict=True):
            pointed = np.concatenate(parts).astype(np.float64)
            known = ~np.isnan(pointed)
            weight = stated
            if weight is None:
                weight = min(round(best_weight(nll[known], -pointed[known]), ROUNDED), 1 - 10**-ROUNDED)
            ratio = np.exp(np.clip(pointed[known] + nll[known], -500, 500))
            found.append((-float(np.log1p(weight * (ratio - 1)).sum()), theta, weight))
        _, theta, weight = min(found)
        return theta, weight
