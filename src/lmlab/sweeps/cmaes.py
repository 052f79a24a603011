"""CMA-ES, whose state Optuna keeps as a pickle: read only where it holds nothing but numbers."""

import io
import pickle
from typing import Any

from optuna.samplers import CmaEsSampler

# What a state is made of; nothing here does more than hold numbers.
ALLOWED = {
    ("cmaes._cma", "CMA"),
    ("cmaes._cmawm", "CMAwM"),
    ("cmaes._sepcma", "SepCMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


class Restricted(pickle.Unpickler):
    """Raises ValueError at the name of anything else, before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ValueError(f"the ledger's state of strategy=cmaes names {module}.{name}: it was not read")
        return super().find_class(module, name)


class NumbersOnly(CmaEsSampler):
    """Optuna's sampler; a ledger from a stranger executes nothing."""

    def _concat_optimizer_attrs(self, optimizer_attrs: dict[str, str]) -> str:
        # Optuna unpickles what this returns.
        text = super()._concat_optimizer_attrs(optimizer_attrs)
        Restricted(io.BytesIO(bytes.fromhex(text))).load()
        return text
