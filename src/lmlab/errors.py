"""How things go wrong, and the exit status that each gets: a failed audit has that of a failed training."""

import errno
import re

DONE, OUR_FAULT, USER_INPUT, TRAINING_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


class TrainingFailed(RuntimeError):
    """Training cannot go on: the loss is not finite, memory or disk ran out. Says what is kept."""


def check_text(name: str, text: object) -> None:
    """Raises TypeError where it is no string, ValueError where UTF-8 cannot write it: then it was no UTF-8 as typed."""
    if not isinstance(text, str):
        raise TypeError(f"{name}={text!r} must be one string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}={text!r} is not UTF-8 (character {error.start + 1}): set the terminal to UTF-8, or give a file "
            "that is"
        ) from error


def full_disk(error: BaseException | None) -> BaseException | None:
    """A full disk's complaint, behind an error or what it was raised from: torch and SQLite have words of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        if type(error).__module__ == "sqlite3" and "disk is full" in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether that is behind an error."""
    while error is not None:
        # torch's own OutOfMemoryError is a RuntimeError; it is not imported for its name.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, RuntimeError) and re.search(r"can't allocate memory|out of memory", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


class NotFinite(TrainingFailed):
    """A loss, a gradient or a weight is no longer a number. Who knows the run's directory adds what is kept."""
