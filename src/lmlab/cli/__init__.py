"""`lmlab VERB [overrides]`: finds the verb, and turns what goes wrong into one line and an exit status."""

import difflib
import errno
import importlib
import os
import re
import sys
import traceback

from lmlab.errors import DONE, INTERRUPTED, OUR_FAULT, TRAINING_FAILED, USER_INPUT, TrainingFailed

VERBS = {
    "train": "train a model on text, measure it, and leave a run's directory",
    "evaluate": "measure a run on held-out text, or on any text",
    "score": "log-probability of given text, token by token",
    "generate": "let a run write",
    "prepare": "encode a corpus and report on it, or look after the cache",
    "runs": "list runs with their numbers, or free the space of some",
    "board": "open TensorBoard on the runs",
}

# Keys whose value is a person's text or a path: taken raw after the first `=`, whatever is in it.
RAW_KEYS = frozenset(
    "text file prompt prompts_file stop run_dir runs_root root cache_dir init_from corpus.path corpus.train corpus.val "
    "corpus.test corpus.name corpus.config tokenizer.path".split()
)


def usage() -> str:
    lines = ["lmlab: a laboratory for language models", "", "usage: lmlab VERB [key=value ...]", ""]
    lines += [f"  {verb:10}{phrase}" for verb, phrase in VERBS.items()]
    return "\n".join([*lines, "", "lmlab VERB --help shows a verb's keys with their defaults"])


def quote(argument: str) -> str:
    """For Hydra's grammar: the value of a raw key becomes a quoted string; a list stays one."""
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+~") not in RAW_KEYS or value.startswith("[") or value == "null":
        return argument
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return argument
    # In a quoted value backslashes count only before a quote, and ${ starts an interpolation.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped).replace("${", "\\${")
    return f'{key}="{escaped}"'


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return DONE
    if arguments[0] == "--version":
        from lmlab import __version__

        print(f"lmlab {__version__}")
        return DONE
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        return _complain(f"no verb {verb!r}" + (f"; did you mean {near[0]!r}?" if near else "; `lmlab` lists them"))
    # Hydra's and the job's errors reach us instead of Hydra's own report and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        return importlib.import_module(f"lmlab.cli.{verb}").main(rest) or DONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        return report(error)


def run() -> None:
    """The console script."""
    sys.exit(main())


def report(error: Exception) -> int:
    """Show an error as its one line; return its exit status."""
    status, message = classify(error)
    if status == OUR_FAULT or os.environ.get("LMLAB_DEBUG"):
        traceback.print_exception(error)
    if status == OUR_FAULT:
        message = f"this is a fault of lmlab's own, please report it: {message}"
    return _complain(message, status)


def classify(error: BaseException) -> tuple[int, str]:
    """The exit status of an error, and the one line that is shown for it."""
    from lmlab.cli.hydra_errors import explain

    if isinstance(error, TrainingFailed):
        return TRAINING_FAILED, str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TRAINING_FAILED, f"the disk is full ({error.filename or error}); free some space and run the same again"
    if (explained := explain(error)) is not None:
        return USER_INPUT, explained
    cause = error
    while cause.__cause__ is not None and type(error).__module__.startswith(("hydra", "omegaconf")):
        cause = cause.__cause__
        if not type(cause).__module__.startswith(("hydra", "omegaconf")):
            break
    if isinstance(cause, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return USER_INPUT, _plain(cause)
    if isinstance(cause, ValueError | KeyError | ImportError) and _raised_by_us(cause):
        return USER_INPUT, _plain(cause)
    return OUR_FAULT, f"{type(cause).__name__}: {cause}"


def _plain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error.args[0]) if error.args else type(error).__name__


def _raised_by_us(error: BaseException) -> bool:
    """Whether our own code said no: a ValueError out of a library's depths is a fault of ours, not the user's."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return name.startswith("lmlab.")


def _complain(message: str, status: int = USER_INPUT) -> int:
    print(f"lmlab: {' '.join(message.split())}", file=sys.stderr)
    return status
