"""How much memory a trial takes and how much there is: what workers=auto asks besides the cores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmlab.config import parse_count, plain, short_name

# A process with PyTorch and Lightning before it has a model: measured, on Linux.
PROCESS = 0.35e9
# Weights, gradient and two moments in fp32.
PER_PARAMETER = 16
# Numbers in fp32 that a layer keeps of a token for the backward pass, in units of its width: 34 bytes in 16 bit
# (Korthikanti et al. 2022, table 2, without attention matrices), so 17; and the logits and their gradient.
PER_LAYER, PER_ENTRY = 17, 2
# Where the text decides how many entries the vocabulary has.
ENTRIES = 8192
# By controller, as /proc/self/cgroup names it (version 2 has none): its folder, and there a control group's limit, its
# use, and what of that is files that were read and can be dropped.
LIMITS = {
    "": ("", "memory.max", "memory.current", "memory.stat", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
}


def estimate(config: DictConfig) -> float:
    """Bytes that a trial of this config is thought to hold at its peak, on the processor."""
    import torch

    from lmlab.experiment import build_model
    from lmlab.sizes import count_parameters, solve_width

    known = 257 if short_name(config.tokenizer) == "byte" else ENTRIES
    vocab_size = int(config.tokenizer.get("vocab_size") or known)
    counts = torch.ones(vocab_size, dtype=torch.int64)

    def build(node: Mapping[str, Any]) -> Any:
        return build_model(node, vocab_size, counts)

    node, wanted = plain(config.model), parse_count(config.n_params, "n_params")
    try:
        node = node if wanted is None else solve_width(node, wanted, build)
    except ValueError:
        # Its trials will say so.
        return PROCESS
    with torch.device("meta"):
        n_params = count_parameters(build(node))
    held = PROCESS + PER_PARAMETER * n_params
    if "n_layers" in node and config.get("batching"):
        rows = config.training.micro_batch_size or config.batching.batch_size
        tokens = rows * config.batching.seq_len
        held += 4 * tokens * (PER_LAYER * node["n_layers"] * node["d_model"] + PER_ENTRY * vocab_size)
    return held


def available(
    meminfo: Path = Path("/proc/meminfo"),
    groups: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> float | None:
    """Bytes that new processes may take: the system's, or the least that is left of its control groups' limits.

    None: not told. own: which group of each controller this process is in; those above it hold it, too.
    """
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return None
    for controller, place in _within(own).items():
        folder, most, used, stat, files = LIMITS[controller]
        for group in (place, *place.parents):
            at = groups / folder / group
            try:
                told = dict(line.split() for line in (at / stat).read_text().splitlines())
                held = int((at / used).read_text()) - int(told.get(files, 0))
                free = min(free, int((at / most).read_text()) - held)
            except (OSError, ValueError):
                # No such limit: there is no file, or it says "max".
                continue
    return max(free, 0.0)


def _within(own: Path) -> dict[str, Path]:
    """{controller: this process's group, below the root of what is mounted}; the root where nobody tells."""
    found = dict.fromkeys(LIMITS, Path())
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in found.keys() & set(controllers.split(",")):
            # Within a container the path may be the host's, of which nothing is mounted, or lead out of the mount.
            found[controller] = Path() if ".." in path.split("/") else Path(path.lstrip("/"))
    return found
