"""lmlab generate: text from a run, shown as it is written."""

import logging
from dataclasses import asdict

from lmlab.cli.command import load_run, one_of, options, read_lines, show_json
from lmlab.errors import check_text
from lmlab.terminal import for_stdout

log = logging.getLogger("lmlab")


def main(arguments: list[str]) -> int:
    config = options("generate", arguments)
    if config is None:
        return 0
    one_of("format", config["format"], ("text", "json"))
    if config["prompt"] and config["prompts_file"] is not None:
        raise ValueError("give one of prompt=... and prompts_file=... (one prompt a line)")
    check_text("prompt", config["prompt"])
    prompts = (
        [config["prompt"]] if config["prompts_file"] is None else read_lines(config["prompts_file"], "prompts_file")
    )
    from dataclasses import fields

    from lmlab.generation import Decoding

    settings = {f.name: config[f.name] for f in fields(Decoding)}
    if isinstance(settings["stop"], str):
        settings["stop"] = [settings["stop"]]
    from lmlab.runs import settle

    # A bad setting is refused before the model is read.
    Decoding(**settle(settings))
    run = load_run(config)
    alone = len(prompts) == 1 and config["num_samples"] == 1 and config["format"] == "text"
    if alone:
        # Read before the prompt is shown: a damaged run is told on a line of its own.
        _ = run.model
        print(for_stdout(prompts[0]), end="", flush=True)
        settings["on_text"] = lambda piece: print(for_stdout(piece), end="", flush=True)
    written = run.generate(prompts, batch_size=config["batch_size"], **settings)
    if alone:
        print()
        for note in written[0][0].notes:
            log.info(note)
    elif config["format"] == "json":
        shown = [
            {"prompt": p, "samples": [asdict(s) for s in samples]} for p, samples in zip(prompts, written, strict=True)
        ]
        show_json(shown)
    else:
        for prompt, samples in zip(prompts, written, strict=True):
            for sample in samples:
                print(for_stdout(f"{prompt}{sample.text}\n{'-' * 40}"))
    return 0
