"""What pruning frees, and what it keeps."""

import shutil

import pytest

from lmlab.runs import prune


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        ("best", ["done/checkpoints/last.ckpt"]),
        ("results", ["done/checkpoints/last.ckpt", "done/checkpoints/best.ckpt"]),
        ("finished", ["open"]),
    ],
)
def test_prune_frees_what_its_rule_says(keep: str, gone: list[str], trained, tmp_path):
    for name in ("done", "open"):
        shutil.copytree(trained["lstm"], tmp_path / name)
    (tmp_path / "open" / "results.json").unlink()
    freed = prune(tmp_path, keep, do_it=False)
    assert sorted(str(path.relative_to(tmp_path)) for path, _ in freed) == sorted(gone)
    assert all(path.exists() and size > 0 for path, size in freed)
    prune(tmp_path, keep, do_it=True)
    assert not any(path.exists() for path, _ in freed)


def test_an_unknown_rule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=all must be one of"):
        prune(tmp_path, "all", do_it=True)
