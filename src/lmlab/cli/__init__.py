"""`lmlab VERB [overrides]`: finds the verb, and turns what goes wrong into one line and an exit status."""

import difflib
import errno
import gc
import importlib
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lmlab.errors import (
    DONE,
    INTERRUPTED,
    OUR_FAULT,
    TRAINING_FAILED,
    USER_INPUT,
    TrainingFailed,
    full_disk,
    ran_out_of_memory,
)
from lmlab.terminal import printable, writes_utf8

VERBS = {
    "train": "train a model on text, measure it, and leave a run's directory",
    "sweep": "train many, of a search space or a list, and find the best",
    "evaluate": "measure a run on held-out text, or on any text",
    "audit": "check that a run's numbers can be trusted",
    "diagnose": "whether a run is trained well enough, and what to try next",
    "compare": "whether the difference between runs, or sets of runs, is real",
    "score": "log-probability of given text, token by token",
    "generate": "let a run write",
    "export": "write a run as a folder that Hugging Face's transformers loads",
    "prepare": "encode a corpus and report on it, or look after the cache",
    "runs": "list runs with their numbers, or free the space of some",
    "report": "show what many runs say, as one page that opens offline",
    "reproduce": "train a recipe and hold it against its published number",
    "bench": "find the precision, threads and compilation that train a recipe fastest on this machine",
    "board": "open TensorBoard on the runs",
}

# What of a verb's keys takes memory while something is measured or written.
LESS_MEMORY = {
    **dict.fromkeys(("evaluate", "compare", "generate"), "a smaller batch_size= needs less and changes no number"),
    **dict.fromkeys(
        ("train", "reproduce"), "a smaller model needs less or, while it is measured, a smaller validation.batch_size="
    ),
}

# Keys whose value is a person's text: taken as it stands after the first `=`, whatever is in it.
TEXT_KEYS = frozenset({"text", "prompt"})
# Paths and names, likewise, but `null` is none.
PATH_KEYS = frozenset(
    [
        "file",
        "prompts_file",
        "run_dir",
        "runs_root",
        "root",
        "cache_dir",
        "init_from",
        "hydra.sweeper.sweep_dir",
        "hydra.sweeper.join",
        "status",
        "mix",
        "beside",
        "save_to",
        "out",
        "corpus.name",
        "corpus.revision",
        "corpus.text_field",
        "corpus.document_separator",
        "tokenizer.source",
    ]
)
# The same, and a value in brackets is a list of them.
LIST_KEYS = frozenset(
    [
        *("stop", "by", "fractions", "callbacks.samples.prompts", "corpus.meta_fields"),
        *("corpus.path", "corpus.train", "corpus.val", "corpus.test"),
    ]
)
# In these `\n` and `\t` are a newline and a tab, which few can type into a shell.
MARK_KEYS = frozenset({"stop", "corpus.document_separator"})


def usage() -> str:
    lines = ["lmlab: a laboratory for language models", "", "usage: lmlab VERB [key=value ...]", ""]
    lines += [f"  {verb:10}{phrase}" for verb, phrase in VERBS.items()]
    return "\n".join([*lines, "", "lmlab VERB --help shows a verb's keys with their defaults"])


def quote(argument: str) -> str:
    """For Hydra's grammar: the value of a free-text or path key becomes a quoted string that means exactly itself."""
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if not equals or name not in TEXT_KEYS | PATH_KEYS | LIST_KEYS or (value == "null" and name not in TEXT_KEYS):
        return argument
    if name in MARK_KEYS:
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        value = value.replace(r"\n", "\n").replace(r"\t", "\t")
    if name in LIST_KEYS and value.startswith("[") and value.endswith("]"):
        # Quoted by hand, it is left as it is. Only spaces are between items: a newline may be one.
        if re.search(r"[\"']", value) or value == "[]":
            return f"{key}={value}"
        items = ",".join(_quoted(item.strip(" ")) for item in value[1:-1].split(","))
        return f"{key}=[{items}]"
    return f"{key}={_quoted(value)}"


def _quoted(value: str) -> str:
    """Hydra's string literal of exactly this text."""
    # `${` starts an interpolation; backslashes count only before it, before a quote, and at the end.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r'(\\*)"', r'\1\1\\"', value)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", value) + '"'


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    _write_anything()
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
        with _quiet_threads():
            return importlib.import_module(f"lmlab.cli.{verb}").main(rest) or DONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        return tell(error, verb)


def _write_anything() -> None:
    """A character that the terminal's encoding lacks (GBK has no U+2423) is shown as its escape, and stops nothing."""
    for stream in (sys.stdout, sys.stderr):
        if not writes_utf8(stream) and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Within, a thread that meets a full disk says nothing: TensorBoard's raises it again when asked to write."""
    before = threading.excepthook

    def tell_others(told: threading.ExceptHookArgs) -> None:
        if full_disk(told.exc_value) is None:
            before(told)

    threading.excepthook = tell_others
    try:
        yield
    finally:
        threading.excepthook = before


def run() -> None:
    """The console script."""
    # While modules are imported nothing becomes garbage; looking for it takes a tenth of the time.
    gc.disable()
    status = main()
    if "torch" not in sys.modules:
        sys.exit(status)
    from lmlab.cli.ending import leave

    leave(status)


def tell(error: Exception, verb: str, where: str = "") -> int:
    """Show an error as its one line; return its exit status. where: which job of several."""
    status, message = classify(error, verb)
    if status == OUR_FAULT or os.environ.get("LMLAB_DEBUG"):
        traceback.print_exception(error)
    if status == OUR_FAULT:
        message = f"this is a fault of lmlab's own, please report it: {message}"
    return _complain(where + message, status)


def classify(error: BaseException, verb: str) -> tuple[int, str]:
    """The exit status of an error, and the one line that is shown for it."""
    from lmlab.cli.hydra_errors import explain, unwrap

    if (explained := explain(error, verb)) is not None:
        return USER_INPUT, explained
    error = unwrap(error)
    if isinstance(error, TrainingFailed):
        return TRAINING_FAILED, str(error)
    if (full := full_disk(error)) is not None:
        where = getattr(full, "filename", None) or full
        return TRAINING_FAILED, f"the disk is full ({where}); free some space and run the same again"
    if ran_out_of_memory(error):
        remedy = f": {LESS_MEMORY[verb]}" if verb in LESS_MEMORY else ""
        return TRAINING_FAILED, f"out of memory{remedy} ({_plain(error).partition(chr(10))[0]})"
    if isinstance(
        error, PermissionError | FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError
    ):
        return USER_INPUT, _plain(error)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.EROFS, errno.ELOOP, errno.EINVAL):
        return USER_INPUT, _plain(error)
    if isinstance(error, ValueError | ImportError) and _refused(error):
        return USER_INPUT, _plain(error)
    if type(error).__name__ == "MisconfigurationException":  # Lightning's word for it; not imported for its name
        return USER_INPUT, str(error)
    return OUR_FAULT, f"{type(error).__name__}: {error}"


def _plain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, UnicodeError):
        return str(error)
    return str(error.args[0]) if error.args else type(error).__name__


def _refused(error: BaseException) -> bool:
    """Whether our own code said no, or somebody's constructor did, whose arguments come from the config.

    A ValueError out of a library's depths is a fault of ours, not the user's.
    """
    trace, module, function = error.__traceback__, "", ""
    while trace is not None:
        module, function = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_frame.f_code.co_name
        trace = trace.tb_next
    return module.startswith("lmlab.") or function == "__init__"


def _complain(message: str, status: int = USER_INPUT) -> int:
    print(f"lmlab: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status
