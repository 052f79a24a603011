"""Parameter counts, and the width that gives the size asked for."""

import pytest

from lmlab.config import compose, plain
from lmlab.experiment import build_model
from lmlab.sizes import count_parameters, embedding_share, flops_per_token, missed_size, solve_width

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


@pytest.mark.parametrize("cutoffs", ["[100]", "[50,100,200]"])
@pytest.mark.parametrize("family", ["model=lstm", "model=transformer"])
def test_clusters_that_are_narrower_than_the_model_need_no_more_than_a_width(family, cutoffs):
    import torch

    words = [family, "model/head=adaptive", "model.tie_embeddings=false", f"model.head.cutoffs={cutoffs}"]
    counts = torch.arange(VOCABULARY, 0, -1)
    node = solve_width(plain(compose(words).model), 400_000, lambda n: build_model(n, VOCABULARY, counts))
    with torch.device("meta"):
        assert abs(count_parameters(build_model(node, VOCABULARY, counts)) - 400_000) <= 0.03 * 400_000


def test_what_no_width_mends_is_told_as_it_is():
    node = plain(compose(["model=transformer", "model.n_heads=4", "model.n_kv_heads=3"]).model)
    with pytest.raises(ValueError, match="n_heads=4 must be a multiple of n_kv_heads=3"):
        solve_width(node, 400_000, build)


def test_where_no_width_is_within_one_percent_the_nearest_is_taken_and_said():
    import torch

    def sized(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(build({**node, "d_model": width}))

    node = plain(compose(["model=lstm", "model.n_layers=3"]).model)
    # Half-way between two widths of some 30 thousand parameters: 1.6 % from either.
    target = (sized(30) + sized(31)) // 2 + 10
    assert 0.01 < sized(31) / target - 1 < 0.1
    assert solve_width(node, target, build)["d_model"] == 31
    told = missed_size(target, sized(31), 31)
    assert told == f"n_params {sized(31):,}: no width is nearer to the {target:,} asked for than 31"
    assert missed_size(1000, 1009, 31) is None
    with pytest.raises(ValueError, match="more than 10% off; ask for that"):
        solve_width(node, (sized(1) + sized(2)) // 2, build)


def test_a_width_is_solved_for_once_for_all_trials_that_build_it_from_the_same():
    node, built = plain(compose(TARGETS["transformer"]).model), []

    def counted(one):
        built.append(one)
        return build(one)

    first = solve_width(node, 250_000, counted, ("a text", VOCABULARY))
    n_built, wanted = len(built), dict(first)
    first["d_model"] = 0
    assert solve_width(node, 250_000, counted, ("a text", VOCABULARY)) == wanted
    assert len(built) == n_built
    for asked, size, known in (
        ({**node, "n_layers": 1}, 250_000, ("a text", VOCABULARY)),
        (node, 260_000, ("a text", VOCABULARY)),
        (node, 250_000, ("another text", VOCABULARY)),
        (node, 250_000, None),
        (node, 250_000, None),
    ):
        n_built = len(built)
        solve_width(asked, size, counted, known)
        assert len(built) > n_built


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


def test_only_tables_of_tokens_count_as_embeddings_of_a_small_vocabulary():
    # 65 characters: layers have more rows than that, and so has the table of 128 learned positions.
    words = "model.d_model=16 model.n_layers=1 model.n_heads=2 model.max_context=128 model.positions=learned"
    node = plain(compose(["model=transformer", *words.split(), "model.embed_ngram=2"]).model)
    model = build_model(node, 65, None)
    # Tied, and the lag's table has a row for no token: 65 + 66 rows of 16.
    assert embedding_share(model) == pytest.approx(131 * 16 / count_parameters(model))
    # The default: its one table of tokens, of some 900 thousand parameters.
    default = build_model(plain(compose(["model=transformer"]).model), 65, None)
    assert embedding_share(default) == 65 * default.d_model / count_parameters(default)
    assert embedding_share(default) < 0.02


def test_a_mixture_multiplies_by_its_matrix_once_for_each_expert():
    words = "model/head=mixture model.head.n_experts=15 model.head.d_latent=null model.d_model=3 model.n_layers=1"
    model = build_model(plain(compose(["model=lstm", *words.split()]).model), 5, None)
    # 96 in the layer; weights of 15 experts from 3: 45; their vectors, 3 x 45 and 45; 15 times 5 x 3 and 5.
    assert flops_per_token(model, 16) == 6 * (96 + 45 + 180 + 300)
    assert embedding_share(model) == pytest.approx(15 / count_parameters(model))


def test_an_adaptive_head_multiplies_by_a_rare_clusters_matrices_rarely():
    import torch

    words = "model/head=adaptive model.head.cutoffs=[2,4] model.head.div_value=2 model.d_model=4 model.n_layers=1"
    node = plain(compose(["model=lstm", *words.split(), "model.tie_embeddings=false"]).model)
    # Ids by frequency: 3 and 0 (14 of 20 tokens); 1 and 4 (5); 2 (1).
    model = build_model(node, 5, torch.tensor([6, 3, 1, 8, 2]))
    # 4 x 4 x 4 twice and two biases of 16 in the layer: 160. The short list's 2 + 2 rows of 4 always: 16; the clusters'
    # 4 x 2 + 2 x 2 for a quarter, 4 x 1 + 1 x 1 for a twentieth.
    assert flops_per_token(model, 16) == 6 * (160 + 16) + round(6 * (12 / 4 + 5 / 20))
    # 5 rows of 4 looked up; 4 x 4, 2 x 2 and 1 x 1 in the head.
    assert embedding_share(model) == pytest.approx((20 + 16 + 4 + 1) / count_parameters(model))


def test_operations_of_a_tiny_transformer_by_hand():
    words = "model.d_model=4 model.n_layers=2 model.n_heads=2 model.d_ff=8 model.mlp=gelu model.max_context=6"
    node = plain(compose(["model=transformer", *words.split()]).model)
    # A layer: qkv 4 x 12, out 4 x 4, up and down 4 x 8 each, two norms of 4, query and key norm of 2 each: 140.
    # Twice that, the last norm of 4, and the table of 7 x 4, which the head multiplies by: 312.
    # Attention: 12 x 2 layers x 2 heads x 2 wide x 6 positions.
    assert flops_per_token(build_model(node, 7, None), 6) == 6 * 312 + 576
    assert flops_per_token(build_model({**node, "window": 3}, 7, None), 6) == 6 * 312 + 288
    # Three more tables that are only looked up cost nothing.
    assert flops_per_token(build_model({**node, "embed_ngram": 4}, 7, None), 6) == 6 * 312 + 576


@pytest.mark.parametrize("tied", ["true", "false"])
def test_operations_of_a_tiny_lstm_by_hand(tied: str):
    words = f"model.d_model=3 model.n_layers=1 model.tie_embeddings={tied}"
    node = plain(compose(["model=lstm", *words.split()]).model)
    # Four gates of 3 x (3 + 3), their two biases of 3 each: 96; the head's 5 x 3 and bias of 5. No lookup.
    assert flops_per_token(build_model(node, 5, None), 16) == 6 * (96 + 20)
