"""Parameter counts, and the width that gives the size asked for."""

import pytest

from lmlab.config import compose, plain
from lmlab.experiment import build_model
from lmlab.sizes import count_parameters, embedding_share, solve_width

VOCABULARY = 300
TARGETS = {
    "lstm": ["model=lstm"],
    "lstm free embeddings": ["model=lstm", "model.tie_embeddings=false", "model.n_layers=3"],
    "lstm with a projection": ["model=lstm", "model.d_embed=64", "model.d_hidden=512"],
    "transformer": ["model=transformer"],
    "gpt2": ["model=gpt2", "model.n_layers=3"],
    "grouped heads": ["model=transformer", "model.n_heads=8", "model.n_kv_heads=2"],
    "free embeddings": ["model=transformer", "model.tie_embeddings=false", "model.mlp=relu2", "model.positions=alibi"],
}


def build(node):
    return build_model(node, VOCABULARY, None)


@pytest.mark.parametrize("target", [200_000, 1_234_567, 5_000_000])
@pytest.mark.parametrize("family", TARGETS)
def test_the_solved_width_is_within_one_percent(family: str, target: int):
    import torch

    node = solve_width(plain(compose(TARGETS[family]).model), target, build)
    with torch.device("meta"):
        size = count_parameters(build(node))
    assert abs(size - target) <= 0.01 * target
    assert node["d_model"] % node.get("n_heads", 1) == 0


@pytest.mark.parametrize("family", ["lstm", "transformer"])
def test_a_size_below_the_vocabulary_is_refused(family: str):
    with pytest.raises(ValueError, match="n_params=500 is below"):
        solve_width(plain(compose(TARGETS[family]).model), 500, build)


def test_a_model_without_a_width_is_refused():
    with pytest.raises(ValueError, match="no d_model"):
        solve_width(plain(compose(["model=ngram"]).model), 500, build)


def test_a_tied_matrix_counts_once():
    small = ["model=lstm", "model.d_model=8", "model.n_layers=1"]
    tied, free = (build(plain(compose([*small, *more]).model)) for more in ([], ["model.tie_embeddings=false"]))
    assert count_parameters(free) - count_parameters(tied) == VOCABULARY * 8
    # By hand: 300 * 8 embedded, 2 * 4 * 8 * 8 + 2 * 4 * 8 in the layer, 300 biases of the head.
    assert count_parameters(tied) == 2400 + 512 + 64 + 300
    assert embedding_share(tied) == pytest.approx(2400 / 3276)
    assert embedding_share(free) == pytest.approx(4800 / 5676)
