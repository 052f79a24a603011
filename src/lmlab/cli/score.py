"""lmlab score: every token's log-probability, coloured by surprisal."""

import logging

from lmlab.cli.command import load_run, one_of, options, read_lines, show_json
from lmlab.cli.tables import console
from lmlab.errors import check_text

log = logging.getLogger("lmlab")


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
    run = load_run(config)
    from lmlab.generation.decoding import unknown_note
    from lmlab.scoring import as_json, as_table

    for note in dict.fromkeys(filter(None, (unknown_note(run.tokenizer, text) for text in texts))):
        log.info(note)
    scores = [run.score(text, top=config["top"], eos=config["eos"]) for text in texts]
    if config["format"] == "json":
        shown = [as_json(score) for score in scores]
        show_json(shown[0] if config["file"] is None else shown)
        return 0
    out = console()
    for score in scores:
        out.print(as_table(score))
    return 0
