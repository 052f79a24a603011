"""The sweeper: from what was asked to a finished sweep. Runs inside Hydra's multirun."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmlab.config import asked as asked_config
from lmlab.config import plain, with_budget
from lmlab.data.cache import locked
from lmlab.errors import OUR_FAULT, USER_INPUT, TrainingFailed
from lmlab.report import leave
from lmlab.runs.protocols import incomparable, is_measured
from lmlab.schema import check_packages
from lmlab.sweeps import asked as asking
from lmlab.sweeps import objective as choosing
from lmlab.sweeps import pruning, strategy
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.composer import Composer
from lmlab.sweeps.crew import HydraCrew, LocalCrew
from lmlab.sweeps.ending import Tidy
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.live import View, total
from lmlab.sweeps.space import Parameter, parse, samples
from lmlab.sweeps.study import Mirror

log = logging.getLogger("lmlab")

# Points whose protocols are looked up before a sweep begins.
FEW = 8


def sweep(
    node: Mapping[str, Any], arguments: Sequence[str], config: DictConfig, hydra_context: Any, task_function: Any
) -> None:
    """Everything between the command line and the last trial. The same again continues.

    node: the keys of conf/sweep.yaml. arguments: the overrides of `lmlab train`. Raises ValueError where all that
    failed was asked wrongly, TrainingFailed where training failed, KeyboardInterrupt where somebody interrupted it.
    """
    check_packages(config)
    options = plain(OmegaConf.create(dict(node)))
    asking.check(options)
    pruning.check(options["pruning"])
    strategy.check(options["strategy"], options["pruning"]["rule"])
    config_dir = next((s.path for s in config.hydra.runtime.config_sources if s.provider == "command-line"), None)
    composer = Composer(config_dir)
    asked = settle(options, arguments, config, composer)
    directory = Path(options["sweep_dir"] or default_directory(asked, config))
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"sweep_dir={directory} is a file; name a directory")
    n_points = asked.n_points
    fresh = not (directory / "sweep.yaml").exists()
    asked.check(directory)
    if fresh and (directory / "asked.yaml").exists():
        raise ValueError(f"sweep_dir={directory} is a run; name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    with Ledger(directory / "ledger.sqlite", create=True) as ledger:
        # Not before: beside a ledger that cannot be read, all stays as it is.
        asked.save(directory)
        begin(asked, ledger)
        before = ledger.counts()
        known = "" if fresh else f", continued: {before['done']} done, {before['waiting']} to go on"
        log.info("sweep %s: %d points%s", directory, n_points, known)
        crew = build_crew(options["workers"], directory, asked, ledger, composer, config, hydra_context, task_function)
        tidy = Tidy(asked, ledger, directory)
        with closing(Mirror(directory, asked)) as mirror:
            with View(directory, ledger, asked) as view:

                def look() -> None:
                    view.update()
                    tidy.update()
                    mirror.update(ledger)

                interrupted = crew.run(ledger, look) or left(asked, ledger)
            mirror.update(ledger, last=not interrupted)
        if interrupted:
            raise KeyboardInterrupt
        # Whoever works on the same sweep, from here or elsewhere, ends about now, too.
        with locked(directory / "finish.lock", f"waiting for another process that finishes {directory}"):
            tidy.finish()
            view.conclude()
            leave(directory)
        complain(ledger)


def settle(options: Mapping[str, Any], arguments: Sequence[str], config: DictConfig, composer: Composer) -> Asked:
    """What is varied and what is fixed, each key once; the command line has the last word."""
    from lmlab.sweeps.trial import config_of, fingerprint

    fixed, varied = split([*options["overrides"], *arguments])
    # The sweep's own override of a key with a condition is its value where that does not hold.
    decided = fixed.keys() - (options["when"].keys() - split(arguments)[0].keys())
    space = {key: text for key, text in options["space"].items() if key not in decided} | varied
    when = {key: told for key, told in options["when"].items() if key in space}
    seeds = seeds_of(space, fixed, options["replicates"])
    test = fixed.pop("test", "test=auto").partition("=")[2].lower()
    asking.one_of("test", test, ("auto", "true", "false"))
    floors = fixed.get("floors", "").partition("=")[2].lower() != "false"
    overrides = ["test=false", "floors=false"]
    if OmegaConf.select(config, "callbacks.samples.every_validation") and "callbacks" not in {*fixed, *space}:
        # A trial writes its texts once: on a board of hundreds nobody reads more, and short ones took a third longer.
        overrides.append("callbacks.samples.every_validation=false")
    overrides += [*fixed.values(), *["test=true"] * (test == "true")]
    parameters = parse(space, when, {key: o.partition("=")[2] for key, o in fixed.items()})
    points = [list(point) for point in options["points"]]
    check_space(options["strategy"], parameters, points, options["trials"], len(seeds))
    objective, keys = choosing.read(options["objective"]), [p.key for p in parameters]
    strategy.check_protocols(options["strategy"], options["pruning"]["rule"], objective, keys, points)

    def make(point: list[str]) -> DictConfig:
        return config_of([*overrides, *point], seeds[0], composer)

    configs = composed(parameters, points, make)
    if any(made.dry_run for made in configs):
        # Their trials would fail, and stay so: it is no part of what a sweep is.
        raise ValueError("dry_run=true trains nothing, a sweep trains: lmlab train dry_run=true shows one trial's plan")
    choosing.check_logged(objective, plain(configs[0]))
    by = strategy.comparing(options["strategy"], options["pruning"]["rule"])
    if by and any(is_measured(one["metric"]) for one in objective):
        warn_of_protocols(" and ".join(by), few(parameters, points), make)
    name = OmegaConf.select(config, "hydra.runtime.choices.sweep") or _named(parameters)
    return Asked(
        name=name,
        strategy=options["strategy"],
        strategy_seed=options["strategy_seed"],
        trials=options["trials"],
        space={p.key: space[p.key] for p in parameters},
        when={key: told for key, told in when.items() if key in {p.key for p in parameters}},
        points=points,
        overrides=overrides,
        objective=objective,
        replicates=len(seeds),
        seeds=seeds,
        pruning=dict(options["pruning"]),
        retries=options["retries"],
        out_of_memory=options["out_of_memory"],
        keep=options["keep"],
        test=test != "false",
        floors=floors,
        config_dir=composer.config_dir,
        base=asked_config(with_budget(configs[0])) | {"seed": seeds[0]},
        fingerprint=fingerprint(configs[0]),
    )


def composed(
    parameters: Sequence[Parameter], points: list[list[str]], config_of: Callable[[list[str]], DictConfig]
) -> list[DictConfig]:
    """Configs of a few points. Raises where nothing of the space can run; one wrong value costs its trials alone."""
    if not parameters:
        return [config_of(point) for point in points or [[]]]
    try:
        return [config_of(asking.overrides(parameters, point)) for point in samples(parameters)]
    except ValueError as error:
        try:
            return [config_of(asking.overrides(parameters, point)) for point in samples(parameters, last=True)]
        except ValueError:
            raise error from None


def few(parameters: Sequence[Parameter], points: list[list[str]]) -> list[list[str]]:
    """Overrides of some points, far apart."""
    if not parameters:
        return points[:FEW]
    found = [asking.overrides(parameters, point) for last in (False, True) for point in samples(parameters, last)]
    return found[:FEW]


def warn_of_protocols(by: str, points: list[list[str]], make: Callable[[list[str]], DictConfig]) -> None:
    """Say so at the start where these points are measured under several protocols, as models of two families may be."""
    from lmlab.sweeps.trial import protocol_name

    names = dict.fromkeys(filter(None, (protocol_name(make, point) for point in points)))
    if len(names) > 1:
        log.warning("%s will compare all trials, but there are %s", by, incomparable(names))


def split(overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """({key: override} of one value, {key: text} of several), each key as it was last given. Hydra's own left out."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    fixed: dict[str, str] = {}
    varied: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~")
        if key == "sweep" or key.split(".")[0].split("/")[0] == "hydra":
            continue
        fixed.pop(key, None)
        varied.pop(key, None)
        text = override.input_line or ""
        if override.is_sweep_override():
            varied[override.get_key_element()] = text.partition("=")[2]
        else:
            fixed[key] = text
    return fixed, varied


def seeds_of(space: dict[str, str], fixed: dict[str, str], replicates: int) -> list[int]:
    """The replicates' seeds, taken out of the space: seed=1,2,3 names them, else they count up from seed."""
    if "seed" in space:
        from lmlab.sweeps.space import parameter

        values = parameter("seed", space.pop("seed")).values
        if replicates != 1:
            raise ValueError(f"replicates={replicates} and several values of seed: give one of them")
        if not values or not all(type(v) is int for v in values):
            raise ValueError("seed: replicates need whole numbers, as in seed=1,2,3")
        return list(values)
    text = fixed.pop("seed", "seed=0").partition("=")[2]
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"seed={text} must be a whole number")
    return [int(text) + i for i in range(replicates)]


def check_space(
    strategy_name: str, parameters: Sequence[Any], points: Sequence[Any], trials: int | None, replicates: int
) -> None:
    if strategy_name == "list":
        if not points:
            raise ValueError("strategy=list with points=[] has nothing to run; give points: lists of overrides")
        if parameters:
            keys = ", ".join(p.key for p in parameters)
            raise ValueError(
                f"strategy=list runs its points alone, and {keys} has several values: put them into points"
            )
        if seeds := [one for point in points for one in point if one.partition("=")[0].lstrip("+~") == "seed"]:
            raise ValueError(f"points: {seeds[0]}: seeds are replicates, of every point: seed=5,6")
        return
    if points:
        raise ValueError(f"points are of strategy=list; strategy={strategy_name} has a space")
    if not parameters and replicates == 1:
        raise ValueError(
            "the space is empty: give a key several values, as in optimizer.lr=1e-3,3e-3 or "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))'"
        )
    if strategy_name == "grid":
        return
    if trials is None:
        raise ValueError(f"strategy={strategy_name} draws points without end: trials=... is needed")
    strategy.check_space(strategy_name, parameters)


def _named(parameters: Sequence[Any]) -> str:
    names = [p.key.lstrip("+").rpartition(".")[2].replace("/", "-") for p in parameters]
    return "_".join(names)[:60] or "replicates"


def default_directory(asked: Asked, config: DictConfig) -> Path:
    """Beside the runs, by what it is: the same command finds it again."""
    return Path(config.runs_root).parent / "sweeps" / f"{asked.name}-{asked.digest()}"


def begin(asked: Asked, ledger: Ledger) -> None:
    """Where a sweep was killed, its trials wait again; failed ones, too, as far as `retries` allows."""
    with ledger.transaction():
        for row in ledger.orphans():
            ledger.set(row["id"], status="waiting", reason="the sweep was stopped")
        for row in ledger.trials("failed"):
            if row["attempts"] <= asked.retries and row["takeovers"] <= asked.retries:
                ledger.set(row["id"], status="waiting")


def build_crew(
    workers: int | str,
    directory: Path,
    asked: Asked,
    ledger: Ledger,
    composer: Composer,
    config: DictConfig,
    hydra_context: Any,
    task_function: Any,
) -> LocalCrew | HydraCrew:
    """Processes of this machine, or jobs of a launcher other than Hydra's basic one."""
    if str(config.hydra.launcher["_target_"]).endswith("BasicLauncher"):
        return LocalCrew(directory, workers, asked, ledger, composer)
    return HydraCrew(directory, workers, config, hydra_context, task_function)


def left(asked: Asked, ledger: Ledger) -> bool:
    """Whether the workers were told to stop before all was done, as a cluster does at its time limit: it is said."""
    counts = ledger.counts()
    missing = total(asked) - sum(counts[status] for status in ("done", "pruned", "failed"))
    if missing > 0:
        log.warning("the workers were stopped with %d trials left; the same command goes on with them", missing)
    return missing > 0


def complain(ledger: Ledger) -> None:
    """Raises where trials failed, so that the exit status says so."""
    failed = ledger.trials("failed")
    if not failed:
        return
    rows = len(ledger.trials())
    shown = "; ".join(f"{row['name'] or row['overrides']}: {row['reason']}" for row in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    message = f"{len(failed)} of the {rows} trials failed ({shown}{more})"
    # On a full disk it was no attempt.
    tries = max(max(row["attempts"], row["takeovers"]) for row in failed)
    message += f"; the same command{f' with retries={tries}' if tries else ''} tries them again"
    codes = {row["code"] for row in failed}
    if codes == {USER_INPUT}:
        raise ValueError(message)
    if OUR_FAULT in codes:
        raise RuntimeError(message)
    raise TrainingFailed(message)
