"""lmlab board: TensorBoard, bound to this machine only."""

from itertools import islice
from pathlib import Path

from lmlab.cli.command import options
from lmlab.errors import DONE, USER_INPUT

# Others cannot reach it.
HOST = "127.0.0.1"
# TensorBoard opens on its first page; an address opens on the page that it names.
PAGES = {"comparison": "custom_scalars", "table": "hparams", "all curves": "timeseries"}
# Of more runs it draws none until somebody chooses.
DRAWN = 40


def main(arguments: list[str]) -> int:
    config = options("board", arguments)
    if config is None:
        return DONE
    if config["port"] > 65535:
        raise ValueError(f"port={config['port']} must be from 0 to 65535; 0 takes a free one")
    root = Path(config["root"])
    if not root.is_dir():
        raise FileNotFoundError(f"root={root} is no directory; train a run first: lmlab train")
    # It has said itself what it lacks: a port that is taken, mostly.
    return USER_INPUT if serve(root, config["port"]) else DONE


def serve(root: Path, port: int) -> int:
    """TensorBoard on the runs below root until it is stopped; not 0 where it could not begin.

    port: 0 for a free one. In this process: SIGTERM ends it, and it says itself which port it got.
    """
    # Help and mistakes need not wait for it.
    from tensorboard.program import TensorBoard, WerkzeugServer

    class Board(WerkzeugServer):
        def print_serving_message(self) -> None:
            super().print_serving_message()
            # Not before: until it is bound, a port that was free may become somebody else's.
            for line in addresses(root, self.get_url()):
                print(line, flush=True)

    board = TensorBoard(server_class=Board)
    board.configure(logdir=str(root), host=HOST, port=port)
    try:
        return board.main()
    except SystemExit as end:
        # How its server refuses a port that only the superuser may have; and how it ends at SIGTERM.
        return int(end.code or 0)


def addresses(root: Path, url: str) -> list[str]:
    """Where several runs are compared; of a single one there is nothing to compare. url: TensorBoard's own."""
    from lmlab.runs import find

    n_runs = sum(1 for _ in islice(find(root), DRAWN + 1))
    if n_runs < 2:
        return []
    told = [f"{name:<11} {url}#{page}" for name, page in PAGES.items()]
    if n_runs > DRAWN:
        told.append(f"of more than {DRAWN} runs none is drawn at first: TOGGLE ALL RUNS there, or choose some")
    return told
