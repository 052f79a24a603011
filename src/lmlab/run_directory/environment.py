"""Versions, commit and machine that a run keeps of how it was made."""

import functools
import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def environment(device: str, kernels: str) -> dict[str, Any]:
    """Versions, commit and machine, for whoever asks later why a number differs. kernels: whose arithmetic."""
    import torch

    return {
        "command": sys.argv,
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": _commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} cpu",
        "threads": torch.get_num_threads(),
        "kernels": kernels,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": _versions(),
    }


# What a process has loaded stays as it is: a worker of a sweep asks once.
@functools.cache
def _versions() -> dict[str, str]:
    packages = ("lmlab", "torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "tokenizers", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


@functools.cache
def _commit() -> str | None:
    """The commit of the code that ran, with '+' where it had been changed; None outside a checkout."""

    def git(*words: str) -> str:
        command = ("git", "-C", str(Path(__file__).parent), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
