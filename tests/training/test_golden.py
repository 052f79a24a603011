"""Seeded steps on the CPU against stored curves: a change of the numbers is seen, and made on purpose or not at all.

`python tests/training/test_golden.py` stores new curves; raise IDENTITY in lmlab.config with them.
"""

import csv
import json
import tempfile
from pathlib import Path

import pytest

from lmlab.config import compose

GOLDEN = Path(__file__).with_name("golden.json")
# No dropout: its masks differ between builds of torch. Sums in another order move the last curves' end by about 1e-6.
CURVES = {
    "lstm on lanes": "model=lstm model.d_model=12 model.d_hidden=16 model.n_layers=2 model.dropout_in=0.0 "
    "model.dropout_between=0.0 model.dropout_out=0.0 batching=lanes batching.batch_size=4 batching.seq_len=16 "
    "optimizer=sgd optimizer.lr=2.0 schedule=constant schedule.warmup=3 training.clip_norm=0.25 training.ar=2.0 "
    "training.tar=1.0 training.micro_batch_size=3 evaluation=carried evaluation.lanes=2",
    "transformer on windows": "model=transformer model.d_model=16 model.n_layers=2 model.n_heads=2 model.n_kv_heads=1 "
    "model.max_context=16 model.embed_ngram=2 batching=windows batching.batch_size=6 batching.seq_len=12 "
    "batching.order=random optimizer=muon schedule=wsd evaluation=sliding",
    "gpt2 on documents": "model=gpt2 model.d_model=16 model.n_layers=1 model.n_heads=2 model.max_context=16 "
    "model.dropout=0.0 batching=documents batching.batch_size=5 batching.seq_len=16 batching.buckets=2 optimizer=adamw "
    "optimizer.lr=0.01 schedule=cosine evaluation=documents",
}
QUIET = (
    "corpus=files corpus.split_by=share tokenizer=byte trainer=cpu logger=csv floors=false test=false compile=false "
    "precision='32' callbacks.samples=null seed=5 training.log_every=1 validation.train_tokens=64 trainer.max_steps=15 "
    "trainer.val_check_interval=5"
)


def curve(overrides: str, folder: Path) -> dict[str, list[float]]:
    """Each step's training loss, and the three validations', from a whole run."""
    from lmlab.experiment import train

    text, run_dir = folder / "numbers.txt", folder / "run"
    text.write_text("".join(f"{n} and {n % 7} are {n + n % 7}\n" for n in range(80)), encoding="utf-8")
    train(compose([*QUIET.split(), f"corpus.train={text}", *overrides.split(), f"run_dir={run_dir}"]))
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        key: [round(float(row[key]), 6) for row in sorted(rows, key=lambda row: int(row["step"])) if row.get(key)]
        for key in ("train/loss", "val/loss", "train/eval_loss")
    }


@pytest.mark.parametrize("name", CURVES)
def test_seeded_steps_follow_the_stored_curve(name: str, tmp_path: Path):
    from lmlab.config import IDENTITY

    golden = json.loads(GOLDEN.read_text())
    assert golden["identity"] == IDENTITY, "new curves and a new IDENTITY belong together"
    ours, stored = curve(CURVES[name], tmp_path), golden[name]
    assert len(ours["train/loss"]) == 15
    assert ours.keys() == stored.keys()
    for key, values in ours.items():
        assert values == pytest.approx(stored[key], rel=1e-4), f"{key} of {name} changed: {__doc__}"


if __name__ == "__main__":
    from lmlab.config import IDENTITY

    curves: dict[str, object] = {"identity": IDENTITY}
    for each, asked in CURVES.items():
        with tempfile.TemporaryDirectory() as made:
            curves[each] = curve(asked, Path(made))
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
