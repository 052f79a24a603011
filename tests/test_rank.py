"""A process that trains with others: it ends when the first does (what they train: tests/training/test_ranks.py)."""

import subprocess
import sys

import pytest

WAITING = "import threading; from lmlab import rank; wait = rank._leave_with_rank_zero; "
WAITING += "threading.Thread(target=wait, daemon=True).start(); "


@pytest.mark.parametrize(("then", "status"), [("import time; time.sleep(0.2)", 0), ("threading.Event().wait()", 1)])
def test_a_process_ends_in_peace_by_itself_and_with_rank_zero(then, status):
    command = [sys.executable, "-c", WAITING + then]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if status:
            process.stdin.close()
        assert process.wait(60) == status
        assert process.stderr.read() == ""
