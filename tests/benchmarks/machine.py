"""What the numbers were measured on."""

import os
import platform
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import lmlab

ROOT = Path(__file__).parents[2]


def machine() -> dict[str, Any]:
    """Processor, what it multiplies fast, versions, load, commit. Imports torch, which takes a second."""
    import torch

    from lmlab.models import kernels

    onednn = torch.ops.mkldnn
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": onednn._is_mkldnn_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "kernels": kernels.described("cpu"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def commit() -> str | None:
    """The last commit of what is measured, with '+' where it has been changed since; None outside a checkout.

    The peers count, and how both sides are measured; what was recorded does not.
    """
    measured = ("--", "src", "conf", "tests/benchmarks", ":(exclude)tests/benchmarks/recorded")

    def git(*words: str) -> str:
        command = ("git", "-C", str(Path(lmlab.__file__).parents[2]), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        last = git("log", "-1", "--format=%h", *measured)
        return last + ("+" if git("status", "--porcelain", "-uno", *measured) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def described(found: dict[str, Any]) -> str:
    """One line for the table."""
    fast = ", ".join(_units(found)) or "no bf16"
    where = found["gpu"] or f"{found['cpu']}, {found['cores']} cores, {found['capability']}, {fast}"
    return f"{where}, torch {found['torch']}"


def kind(found: dict[str, Any]) -> str:
    """Folder name of machines whose results can stand in one table."""
    processor = [found["cpu"], found["capability"], *_units(found), f"{found['cores']} cores"]
    return re.sub(r"\W+", "_", found["gpu"] or " ".join(processor)).lower()


def _units(found: dict[str, Any]) -> list[str]:
    return [name for name in ("amx", "bf16") if found[name]]
