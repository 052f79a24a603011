"""lmlab score: every token's log-probability, coloured by surprisal."""

import logging
from typing import TYPE_CHECKING

from lmlab.cli.command import load_run, one_of, options, read_lines, show_json
from lmlab.cli.tables import console
from lmlab.errors import check_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmlab.runs import Run
    from lmlab.scoring import TextScore

log = logging.getLogger("lmlab")

# Texts that are scored side by side: speed, never a score.
AT_ONCE = 16


def main(arguments: list[str]) -> int:
    config = options("score", arguments)
    if config is None:
        return 0
    one_of("format", config["format"], ("table", "json"))
    if (config["text"] is None) == (config["file"] is None):
        raise ValueError("give one of text=... and file=... (one text a line)")
    if config["text"] is not None:
        check_text("text", config["text"])
    texts = [config["text"]] if config["text"] is not None else read_lines(config["file"])
    scores = _scores(load_run(config), texts, config["top"], config["eos"])
    from lmlab.scoring import as_json, as_table

    if config["format"] == "json":
        shown = [as_json(score) for score in scores]
        show_json(shown[0] if config["file"] is None else shown)
        return 0
    out = console()
    for score in scores:
        out.print(as_table(score))
    return 0


def _scores(run: "Run", texts: list[str], top: int, eos: bool) -> "Iterator[TextScore]":
    """Each text's score, after a note on what the vocabulary lacks, said once."""
    from lmlab.generation.decoding import unknown_note
    from lmlab.models.kernels import using
    from lmlab.scoring import score_many

    said: set[str | None] = {None}
    with using(run.kernels):
        for score in score_many(run.model, run.tokenizer, texts, top=top, eos=eos, batch_size=AT_ONCE):
            # Only these are encoded once more.
            lacks = any(token.id == run.tokenizer.unk_id for token in score.tokens)
            if lacks and (note := unknown_note(run.tokenizer, score.text)) not in said:
                said.add(note)
                log.info(note)
            yield score
