"""The quick end of a command loses nothing that the slow one keeps."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def ends(code: str, **options) -> subprocess.CompletedProcess:
    code = "import sys\nfrom lmlab.cli.ending import leave\nprint('told')\n"
    # Unbuffered, printing itself would fail.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    quiet = {"stderr": subprocess.DEVNULL, "env": environment, "check": False}
    with full.open("w") as out:
        plain = subprocess.run([sys.executable, "-c", code], stdout=out, **quiet)
        ours = subprocess.run([sys.executable, "-c", code + "leave(0)"], stdout=out, **quiet)
    assert ours.returncode == plain.returncode == 120
