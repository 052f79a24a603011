"""lmlab reproduce NAME: train a recipe, or go on with it, and hold it against its published number."""

from pathlib import Path

from lmlab.cli.command import CommandLine, look_for_garbage, one_of, parse, show_help, show_json, show_log
from lmlab.config import compose, plain, suggest
from lmlab.errors import DONE, INTERRUPTED


def main(arguments: list[str]) -> int:
    line = parse("reproduce", arguments)
    known = plain(compose((), "reproduce"))
    names = [word for word in line.overrides if "=" not in word and not word.startswith("~")]
    ours = [word for word in line.overrides if word.partition("=")[0] in known]
    words = [word for word in line.overrides if word not in (*ours, *names)]
    if len(names) > 1:
        raise ValueError(f"lmlab reproduce takes one NAME, not {' and '.join(names)}; settings are written key=value")
    options = plain(compose(ours, "reproduce"))
    from lmlab.schema import check_keys

    check_keys(options)
    if line.help:
        show_help("reproduce")
        print()
        return listed(options | {"format": "table"}, line)
    if not names:
        if words and not line.shown:
            raise ValueError(f"{words[0]} changes a recipe, and none is named: lmlab reproduce NAME {words[0]}")
        return shown(options) if line.shown else listed(options, line)
    return one(names[0], words, options, line)


def shown(tree: dict) -> int:
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(tree).rstrip())
    return DONE


def listed(options: dict, line: CommandLine) -> int:
    """Every recipe's number, with what is recorded below root."""
    from lmlab import reproduction
    from lmlab.reproduction.table import markdown

    one_of("format", options["format"], ("table", "json", "markdown"))
    numbers, kept = reproduction.recipes(line.config_dir), reproduction.records(options["root"])
    if options["format"] == "markdown":
        print(markdown(kept, numbers))
    elif options["format"] == "json":
        show_json({name: target and target.as_dict() for name, target in numbers.items()})
    else:
        from lmlab.cli.tables import show_numbers

        show_numbers(numbers, kept)
    return DONE


def one(name: str, words: list[str], options: dict, line: CommandLine) -> int:
    from lmlab import reproduction
    from lmlab.reproduction.reproduce import directory, reproduce
    from lmlab.reproduction.table import beside

    one_of("format", options["format"], ("table", "json"))
    numbers = reproduction.recipes(line.config_dir)
    if name not in numbers:
        raise ValueError(f"no recipe {name!r}{suggest(name, numbers)}; lmlab reproduce lists them")
    recipe = compose([f"experiment={name}"], "train", line.config_dir)
    config = compose([f"experiment={name}", *words], "train", line.config_dir)
    if not config.run_dir:
        config.run_dir = str(directory(Path(options["root"]), name, recipe, config))
    if line.shown:
        return shown({**options, "recipe": config})
    peer = None if options["beside"] is None else beside(options["beside"])
    look_for_garbage()
    show_log()
    record = reproduce(name, recipe, config)
    if config.dry_run:
        from lmlab.cli.tables import show_plan

        show_plan(record)
        return DONE
    if options["format"] == "json":
        show_json(record | {"beside": peer})
    else:
        from lmlab.cli.tables import show_reproduction

        show_reproduction(record, peer)
    return INTERRUPTED if record["training"]["stopped_because"] == "interrupted" else DONE
