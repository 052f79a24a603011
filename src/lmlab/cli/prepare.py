"""lmlab prepare: a corpus encoded once, with a report; the cache listed and pruned."""

import logging
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from lmlab.cli.command import one_of, options, show_json
from lmlab.config import cache_dir

log = logging.getLogger("lmlab")


def main(arguments: list[str]) -> int:
    config = options("prepare", arguments)
    if config is None:
        return 0
    one_of("format", config["format"], ("table", "json"))
    if config["cache"] is not None:
        one_of("cache", config["cache"], ("list", "prune"))
        return look_after(config)
    from lmlab.cli.tables import show_report
    from lmlab.experiment import build_store

    store = build_store(config)
    report = store.report | {"path": str(store.path)}
    if config["format"] == "json":
        show_json(report)
    else:
        show_report(report)
    return 0


def look_after(config: dict) -> int:
    """List the stores, or remove those that nobody opened for `unused_days`."""
    from lmlab.cli.tables import show_stores
    from lmlab.data.inventory import prune, stores

    folder, removing = Path(cache_dir(config["cache_dir"])), config["cache"] == "prune"
    if not folder.is_dir():
        log.info("there is no cache at %s: lmlab prepare makes one", folder)
    found = prune(folder, unused_days=config["unused_days"]) if removing else stores(folder)
    if config["format"] == "json":
        # The time as text, in UTC.
        rows = [
            asdict(e) | {"path": str(e.path), "used": datetime.fromtimestamp(e.used, UTC).isoformat()} for e in found
        ]
        show_json(rows)
        return 0
    show_stores(found)
    if removing:
        print(f"removed {len(found)} stores, {sum(entry.bytes for entry in found) / 1e6:,.1f} MB")
    return 0
