"""Which precision, threads, micro-batch and compilation train a recipe fastest here: measured over its own steps."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from lmlab.config import as_yaml, cache_dir
from lmlab.decisions import find_compiler
from lmlab.experiment import Plan, plan
from lmlab.hardware import Machine, multiplies_bf16, threads
from lmlab.initial import with_initial
from lmlab.sizes import flops_per_token
from lmlab.speed import weights_may_be_held_twice
from lmlab.training.trial import Trial, attempt

log = logging.getLogger("lmlab")

# What must be gained to leave a setting: less is noise.
GAIN = 1.03
# Each candidate is measured so often, in turns with the others.
ROUNDS = 2
# Longest measurement, seconds; what compiling may take.
LONGEST, COMPILING = 4.0, 40.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is tried. All but the batch size train the same thing, up to rounding."""

    precision: str
    threads: int
    micro_batch_size: int | None
    compile: bool
    batch_size: int

    def overrides(self, with_batch_size: bool) -> dict[str, Any]:
        """Dotted keys of `lmlab train`."""
        chosen = {"precision": self.precision, "threads": self.threads, "compile": self.compile}
        chosen["training.micro_batch_size"] = self.micro_batch_size
        return chosen | ({"batching.batch_size": self.batch_size} if with_batch_size else {})


class Tuner:
    """Coordinate descent: one setting after the other, from where `lmlab train` would start, while the time lasts."""

    def __init__(self, config: DictConfig, seconds: float):
        self.config, self.deadline = with_initial(config)[0], time.perf_counter() + seconds
        self.plans: dict[int, Plan] = {}
        asked = OmegaConf.merge(self.config, {"devices": 1})
        self.plan = plan(asked)
        if self.plan.batching is None:
            raise ValueError("this model is counted in one pass: there is nothing to tune")
        self.device = self.plan.decided["device"]
        self.machine = Machine(self.device, cache_dir(config.cache_dir))
        decided = self.plan.decided["precision"]
        self.start = Setting(
            "32-true" if decided == "32" else decided,
            torch.get_num_threads(),
            config.training.micro_batch_size,
            False,
            self.plan.batching.batch_size,
        )
        self.trials: dict[Setting, list[Trial]] = {}
        # So that all candidates have their turn.
        n = sum(len(list(c)) for c in (self._precisions(), self._threads(), self._micro_batches(), self._batches()))
        self.slice = min(LONGEST, seconds / (2 * ROUNDS * max(n, 1)))

    def run(self) -> tuple[Setting, Setting]:
        """The fastest setting at the recipe's batch size, and the fastest when that may change too."""
        self.machine.measure_again()
        self.machine.products(thorough=True)
        best = self.start
        for name, candidates in (
            ("precision", self._precisions()),
            ("threads", self._threads()),
            ("micro_batch_size", self._micro_batches()),
        ):
            best = self._fastest(best, [dataclasses.replace(best, **{name: value}) for value in candidates])
        # Before compiling: a new batch size would be compiled anew.
        sizes = [
            dataclasses.replace(best, batch_size=n, micro_batch_size=None) for n in self._batches() if self._fits(n)
        ]
        other = self._fastest(best, sizes)
        if self._may_compile():
            best = self._fastest(best, [dataclasses.replace(best, compile=True)])
        return best, other

    def seconds_per_token(self, setting: Setting) -> float:
        """Infinite where it could not be measured."""
        trials = self.trials.get(setting, [])
        if not trials or any(t.fault for t in trials):
            return float("inf")
        steps = sorted(s for t in trials for s in t.step_seconds)
        return steps[len(steps) // 2] / self._plan(setting.batch_size).batching.tokens_per_step

    def repays(self, setting: Setting) -> bool:
        """Whether what compiling gains over the whole run is more than its wait."""
        eager = dataclasses.replace(setting, compile=False)
        gain = self.seconds_per_token(eager) - self.seconds_per_token(setting)
        tokens = self.plan.total_steps * self.plan.batching.tokens_per_step
        return gain * tokens > max(t.starting for t in self.trials[setting])

    def rows(self) -> list[dict[str, Any]]:
        """All that was measured."""
        flops, products = flops_per_token(self.plan.model, self.plan.batching.seq_len), self.machine.products()
        rows = []
        for setting, trials in self.trials.items():
            each = self.seconds_per_token(setting)
            tokens = self._plan(setting.batch_size).batching.tokens_per_step
            peak = products.get("bf16" if setting.precision.startswith("bf16") else "fp32")
            rows.append(
                dataclasses.asdict(setting)
                | {
                    "ms_per_step": 1000 * each * tokens,
                    "tokens_per_s": 1 / each,
                    "mfu": flops / each / peak if peak else None,
                    "starting_s": max(t.starting for t in trials),
                    "loss": trials[0].loss,
                    "fault": next((t.fault for t in trials if t.fault), None),
                }
            )
        return rows

    def _fastest(self, best: Setting, candidates: list[Setting]) -> Setting:
        for setting in self._turns([best, *(c for c in candidates if c != best)]):
            self._try(setting)
        measured = [c for c in candidates if c in self.trials]
        winner = min(measured, key=self.seconds_per_token, default=best)
        if self.seconds_per_token(winner) * GAIN > self.seconds_per_token(best):
            return best
        return winner if not winner.compile or self.repays(winner) else best

    def _turns(self, settings: list[Setting]) -> Iterator[Setting]:
        """Each ROUNDS times, in turns: what else runs on the machine meets all of them."""
        if len(settings) < 2:
            settings = [s for s in settings if s not in self.trials]
        for _ in range(ROUNDS):
            for setting in settings:
                if time.perf_counter() > self.deadline and self.trials:
                    return
                yield setting

    def _try(self, setting: Setting) -> None:
        planned = self._plan(setting.batch_size)
        planned.config.training.micro_batch_size = setting.micro_batch_size
        with threads(setting.threads):
            trial = attempt(planned, 1000, self.slice, warm_up=2, precision=setting.precision, compile=setting.compile)
        self.trials.setdefault(setting, []).append(trial)
        tokens = planned.batching.tokens_per_step / trial.median
        told = ", ".join(f"{key}={as_yaml(value)}" for key, value in setting.overrides(with_batch_size=True).items())
        log.info("%s: %s", told, trial.fault or f"{1000 * trial.median:,.1f} ms a step, {tokens:,.0f} tokens/s")

    def _plan(self, batch_size: int) -> Plan:
        if batch_size not in self.plans:
            changed = {"batching": {"batch_size": batch_size}, "devices": 1, "precision": "32", "compile": False}
            self.plans[batch_size] = plan(OmegaConf.merge(self.config, changed))
        return self.plans[batch_size]

    def _precisions(self) -> list[str]:
        fast = "bf16" if weights_may_be_held_twice(self.plan.model, 1) else "bf16-mixed"
        return ["32-true", *([fast] if multiplies_bf16(self.device) else [])]

    def _threads(self) -> list[int]:
        """All, and halves of it: small models lose by more threads than they have work for."""
        if self.device != "cpu":
            return []
        n, counts = self.start.threads, []
        while n >= 1:
            counts.append(n)
            n //= 2
        return counts[:4]

    def _micro_batches(self) -> list[int | None]:
        rows = self.start.batch_size
        return [None, *(rows // k for k in (2, 4) if rows % k == 0 and rows // k >= 1)]

    def _batches(self) -> list[int]:
        rows = self.start.batch_size
        return [rows // 2] * (rows % 2 == 0) + [2 * rows, 4 * rows]

    def _fits(self, batch_size: int) -> bool:
        """Whether the text is long enough for such batches."""
        try:
            self._plan(batch_size)
        except ValueError as error:
            log.info("batching.batch_size=%d is not tried: %s", batch_size, error)
            return False
        return True

    def _may_compile(self) -> bool:
        return find_compiler(self.device) and self.deadline - time.perf_counter() > COMPILING


def write(path: Path, setting: Setting, with_batch_size: bool, about: str) -> None:
    """An option file of Hydra's, for `+tuned=NAME`."""
    tree: dict[str, Any] = {}
    for key, value in setting.overrides(with_batch_size).items():
        group, _, leaf = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# @package _global_\n# {about}\n{yaml.safe_dump(tree, sort_keys=False)}", encoding="utf-8")


def as_words(setting: Setting, with_batch_size: bool) -> str:
    """key=value, as they are typed."""
    return " ".join(f"{key}={as_yaml(value)}" for key, value in setting.overrides(with_batch_size).items())
