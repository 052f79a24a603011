"""lmlab bench: the precision, threads and compilation that train a recipe fastest on this machine, as overrides."""

import re
import shlex
from pathlib import Path

from lmlab.cli import quote
from lmlab.cli.command import one_of, parse, show_help, show_json, show_log
from lmlab.config import compose, plain, short_name


def main(arguments: list[str]) -> int:
    line = parse("bench", arguments)
    if line.help:
        show_help("bench")
        return 0
    known = plain(compose((), "bench"))
    ours = [word for word in line.overrides if word.partition("=")[0] in known]
    recipe = [word for word in line.overrides if word not in ours]
    options, config = plain(compose(ours, "bench")), compose(recipe, "train", line.config_dir)
    if line.shown:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml({**options, "recipe": config}).rstrip())
        return 0
    from lmlab.experiment import check_config
    from lmlab.schema import check_keys

    check_keys(options)
    one_of("format", options["format"], ("table", "json"))
    check_config(config)
    # Before minutes of measuring.
    for folder in (Path(options["save_to"]), Path(options["save_to"]) / "tuned"):
        if folder.is_file():
            raise NotADirectoryError(f"save_to={options['save_to']}: {folder} is a file; name a directory")
    show_log()
    # As it was typed: what Hydra gets is quoted for it.
    typed = [word for word in arguments if quote(word) in recipe]
    return bench(config, options, typed, line.config_dir)


def bench(config, options: dict, recipe: list[str], config_dir: str | None) -> int:
    from lmlab import tuning
    from lmlab.hardware import threads
    from lmlab.models import kernels

    with threads(config.threads), kernels.using(config.kernels):
        tuner = tuning.Tuner(config, options["seconds"])
        best, other = tuner.run()
    chosen = other if options["with_batch_size"] else best
    name = options["name"] or "_".join(
        [*(short_name(config[group]) for group in ("corpus", "tokenizer", "model")), tuner.device]
    )
    path = Path(options["save_to"]) / "tuned" / f"{name}.yaml"
    gain = tuner.seconds_per_token(tuner.start) / tuner.seconds_per_token(chosen)
    about = f"lmlab bench {shlex.join(recipe)}".strip() + f", on {tuner.machine.key['device']}: {gain:.2f} times"
    tuning.write(path, chosen, options["with_batch_size"], about)
    results = {
        "machine": tuner.machine.known,
        "settings": tuner.rows(),
        "start": tuning.as_words(tuner.start, True),
        "best": tuning.as_words(best, False),
        "gain": gain,
        "file": str(path),
        # Our own conf/ is searched anyway; a second folder of options cannot be named beside this one.
        "command": None if config_dir else command(recipe, options["save_to"], name),
        "overrides": tuning.as_words(chosen, options["with_batch_size"]),
        "batch_size": {"fastest": other.batch_size, "recipe": best.batch_size},
    }
    if options["format"] == "json":
        show_json(results)
    else:
        from lmlab.cli.tables import show_bench

        show_bench(results)
    return 0


def command(recipe: list[str], folder: str, name: str) -> str:
    """What trains the recipe so, ready to be copied."""
    # Hydra's grammar has no other letters outside quotes.
    chosen = name if re.fullmatch(r"[A-Za-z0-9_./-]+", name) else f'"{name}"'
    return shlex.join(["lmlab", "train", *recipe, "--config-dir", folder, f"+tuned={chosen}"])
