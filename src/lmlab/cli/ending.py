"""The end of a command: everything that is under way is finished, and the memory is left to the system."""

import atexit
import gc
import io
import os
import sys
import threading

# How Python itself ends where what it printed could not be written.
NOT_FLUSHED = 120


def leave(status: int) -> None:
    """End the process as `sys.exit(status)` does, but without taking its objects apart, which takes torch a second.

    Threads that are not daemons are waited for, what is registered for the exit runs, open files are flushed.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    if not flush():
        status = NOT_FLUSHED
    os._exit(status)


def flush() -> bool:
    """Every open file, as closing it would; whether standard output took it."""
    gc.unfreeze()
    for thing in gc.get_objects():
        # By exact type: asking other objects for their class may run their code.
        if type(thing) in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom) and thing is not sys.stdout:
            try:
                thing.flush()
            except (OSError, ValueError):
                # Closed, detached or full: closing it at the exit would have said no more.
                continue
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError:
        return False
    return True
