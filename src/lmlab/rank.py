"""One of several processes that train one run, but the first: `training.ranks` starts it."""

import os
import sys
import threading

import torch
from omegaconf import OmegaConf

from lmlab.errors import DONE, OUR_FAULT, TRAINING_FAILED, NotFinite, TrainingFailed


def main(path: str) -> int:
    """Rank 1 or higher: the same plan, the same steps, nothing written."""
    threading.Thread(target=_leave_with_rank_zero, daemon=True).start()
    if os.getcwd() not in sys.path:
        # A person's own classes may lie there; last in line, so that they replace nothing.
        sys.path.append(os.getcwd())
    from lmlab.experiment import plan
    from lmlab.models import kernels
    from lmlab.run_directory import RunDirectory
    from lmlab.training.checkpoints import read
    from lmlab.training.fit import run

    config = OmegaConf.load(path)
    directory = RunDirectory(config.run_dir)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        with kernels.using(config.kernels):
            run(plan(config), directory, read(directory.last) if directory.last.exists() else None)
    except TrainingFailed as error:
        # What all ranks meet alike rank 0 says; memory may have run out here alone.
        if not isinstance(error.__cause__, NotFinite):
            print(f"rank {os.environ['LOCAL_RANK']}: {error}", file=sys.stderr, flush=True)
        return TRAINING_FAILED
    return DONE


def _leave_with_rank_zero() -> None:
    """Rank 0 holds the other end of our input: it ends when rank 0 does, however that happens."""
    # Not through sys.stdin, whose lock Python wants at its end and, finding it taken, dies of.
    while os.read(0, 1):
        pass
    os._exit(OUR_FAULT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
