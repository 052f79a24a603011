"""Kernels for AMX's tiles make the products and sums they say, whatever is no multiple of a tile."""

import pytest
import torch
import torch.nn.functional as F
from tests.native.test_native import INF, NAN, check, normal, pytestmark  # noqa: F401
from torch import Tensor

from lmlab import native

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def _there_are_tiles():
    if not native.has_tiles():
        pytest.skip("the processor has no tiles, or nobody may use them")


def problem(n: int, v: int, d: int, bias: bool = True, by: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """hidden, W, bias and targets; all numbers are such as bf16 has."""
    weight, b = normal((v, d), HALF, 2, by=by * d**-0.5).float(), normal((v,), HALF, 3, by=by).float()
    # The first, the last, and some of most strips.
    targets = torch.arange(n) * 13 % v
    targets[-1] = v - 1
    return normal((n, d), HALF, 1), weight, b if bias else None, targets


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return hidden.double() @ weight.double().t() + (0 if bias is None else bias.double())


def without_targets(z: Tensor, targets: Tensor) -> Tensor:
    return z.scatter(1, targets[:, None], -INF)


def forward(hidden, weight, bias, targets) -> tuple[Tensor, ...]:
    """nll, and what goes back: p, tops, the largest logits. What was in p before does not count."""
    n, p = len(hidden), torch.full((native.head_tiles_size(len(hidden), len(weight)),), NAN, dtype=HALF)
    tops, sums, picked = native.head_tiles(hidden, weight, bias, targets, p)
    peak = tops[:, :n].amax(0)
    total = ((tops[:, :n] - peak).exp() * sums[:, :n]).sum(0)
    return F.softplus(peak - picked + total.log(), threshold=60), p, tops, peak


def backward(hidden, weight, p, tops, peak, share, d_weight=True, d_bias=True) -> list[Tensor]:
    """The gradients of hidden and, if wanted, of W and the bias, whose memory holds NaN before."""
    d_w = torch.full_like(weight, NAN) if d_weight else None
    d_b = weight.new_full((len(weight),), NAN) if d_bias else None
    d_hidden = native.head_tiles_backward(hidden, weight, p.clone(), tops, peak, share, d_w, d_b)
    return [d_hidden, *(t for t in (d_w, d_b) if t is not None)]


def check_gradients(found: list[Tensor], hidden, weight, others, peak, share) -> None:
    """e^(logit - top) is rounded to bf16, and again when it was multiplied by its row's factors."""
    g = share.double()[:, None] * (others - peak.double()[:, None]).exp()
    for a, left, right in zip(found, (g, g.t(), g.t()), (weight, hidden, torch.ones(len(hidden), 1)), strict=True):
        exact, allowed = left @ right.double(), left.abs() @ right.double().abs() * 2**-7 * 1.01 + 1e-30
        assert a.dtype is torch.float32
        assert ((a.double().view_as(exact) - exact).abs() <= allowed).all()


# Blocks of strips on the way back: 14,080 words at a width of 32, 704 at one of 640.
HEADS = [
    (1, 1, 1), (3, 31, 5), (33, 32, 32), (17, 33, 31), (37, 70, 64), (64, 97, 33), (31, 2, 95), (3, 1500, 640),
    (33, 14_100, 20),
]  # fmt: skip


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("sizes", HEADS, ids=str)
def test_a_heads_losses_and_gradients(sizes, bias):
    hidden, weight, b, targets = problem(*sizes, bias)
    nll, p, tops, peak = forward(hidden, weight, b, targets)
    z = logits(hidden, weight, b)
    torch.testing.assert_close(nll.double(), F.cross_entropy(z, targets, reduction="none"), rtol=2e-6, atol=2e-6)
    others = without_targets(z, targets)
    for strip, top in zip(others.split(32, 1), tops[:, : len(hidden)], strict=True):
        exact = strip.amax(1)
        torch.testing.assert_close(top.double()[exact > -INF], exact[exact > -INF], rtol=1e-6, atol=2e-6)
    share = normal((len(hidden),), torch.float32, 5)
    check_gradients(backward(hidden, weight, p, tops, peak, share), hidden, weight, others, peak, share)


def test_a_heads_gradients_that_nobody_wants_are_not_written():
    hidden, weight, bias, targets = problem(37, 70, 33)
    _, p, tops, peak = forward(hidden, weight, bias, targets)
    share = normal((37,), torch.float32, 5)
    d_hidden, d_weight, d_bias = backward(hidden, weight, p, tops, peak, share)
    for wanted in ((True, False), (False, True), (False, False)):
        found = backward(hidden, weight, p, tops, peak, share, *wanted)
        expected = [d_hidden, *(t for t, there in zip((d_weight, d_bias), wanted, strict=True) if there)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("targets", [torch.arange(32), torch.full((32,), 32)], ids=["elsewhere", "alone in its strip"])
@pytest.mark.parametrize("by", [0.0, -40.0, -1e4])
def test_logits_far_below_zero(by, targets):
    hidden, weight, bias, _ = problem(32, 33, 31)
    # One number that moves all of a row's logits by the same: no difference between them is lost.
    hidden[:, 0], weight[:, 0] = 1.0, torch.tensor(by).to(HALF).float()
    nll, p, tops, peak = forward(hidden, weight, bias, targets)
    z = logits(hidden, weight, bias)
    # fp32 has a logit of 1e4 to 5e-4, and rounds at each of its products.
    close = {"rtol": 0, "atol": 2e-6 + abs(by) * 5e-7}
    torch.testing.assert_close(nll.double(), F.cross_entropy(z, targets, reduction="none"), **close)
    others, share = without_targets(z, targets), normal((32,), torch.float32, 5)
    g = share.double()[:, None] * (others - peak.double()[:, None]).exp()
    _, _, d_bias = backward(hidden, weight, p, tops, peak, share)
    torch.testing.assert_close(d_bias.double(), g.sum(0), rtol=0, atol=2**-7 * g.abs().sum(0).max().item())


def test_logits_that_lie_far_apart():
    hidden, weight, bias, targets = problem(37, 97, 33, by=3e3)
    nll, p, tops, peak = forward(hidden, weight, bias, targets)
    z = logits(hidden, weight, bias)
    assert z.min() < -1e4
    torch.testing.assert_close(nll.double(), F.cross_entropy(z, targets, reduction="none"), rtol=1e-6, atol=5e-3)
    assert all(g.isfinite().all() for g in backward(hidden, weight, p, tops, peak, torch.ones(37)))


def test_words_that_a_bias_rules_out_have_no_share():
    """A whole strip of them, too, and all but the target."""
    hidden, weight, bias, targets = problem(19, 97, 33)
    for possible in (slice(40, 60), slice(90, 97), slice(5, 6)):
        bias = torch.full((97,), -INF)
        bias[possible] = 0
        targets = torch.arange(19) % len(bias[possible]) + possible.start
        nll, p, tops, peak = forward(hidden, weight, bias, targets)
        z = logits(hidden, weight, bias)
        torch.testing.assert_close(nll.double(), F.cross_entropy(z, targets, reduction="none"), rtol=2e-6, atol=2e-6)
        share = normal((19,), torch.float32, 5)
        found = backward(hidden, weight, p, tops, peak, share)
        check_gradients(found, hidden, weight, without_targets(z, targets), peak, share)


def test_nan_in_a_row_of_hidden_is_in_its_loss_and_gradient_and_in_no_others():
    hidden, weight, bias, targets = problem(35, 70, 33)
    exact = forward(hidden, weight, bias, targets)[0]
    hidden[[3, 34], [32, 0]] = NAN
    nll, p, tops, peak = forward(hidden, weight, bias, targets)
    bad = torch.zeros(35, dtype=torch.bool).index_fill(0, torch.tensor([3, 34]), True)
    assert torch.equal(nll.isnan(), bad)
    assert torch.equal(nll[~bad], exact[~bad])
    d_hidden, d_weight, d_bias = backward(hidden, weight, p, tops, peak, torch.where(bad, NAN, 1.0))
    assert torch.equal(d_hidden.isnan(), bad[:, None].expand(35, 33))
    assert d_weight.isnan().all()
    assert d_bias.isnan().all()


def test_nan_in_a_word_is_in_all_losses():
    hidden, weight, bias, targets = problem(35, 70, 33)
    weight[69, 32] = NAN
    assert forward(hidden, weight, bias, targets)[0].isnan().all()


def test_targets_of_other_kinds_and_that_lie_apart():
    hidden, weight, bias, targets = problem(37, 70, 33)
    nll = forward(hidden, weight, bias, targets)[0]
    apart = torch.stack([targets, targets.flip(0)], 1)[:, 0]
    for other in (apart, targets.int()):
        assert torch.equal(forward(hidden, weight, bias, other)[0], nll)


BATCHES = [1, 16, 17, 20, 31, 32, 33, 64]


def states(T: int, B: int, H: int) -> tuple[Tensor, ...]:
    """z, w, h, c and gates; what is to be written holds NaN."""
    h, c = torch.full((T + 1, B, H), NAN, dtype=HALF), torch.full((T + 1, B, H), NAN)
    h[0], c[0] = normal((B, H), HALF, 3, by=0.5), normal((B, H), torch.float32, 4)
    z, w = normal((T, B, 4 * H), HALF, 1), normal((4 * H, H), HALF, 2, by=H**-0.5)
    return z, w, h, c, torch.full((T, B, 4 * H), NAN)


@pytest.mark.parametrize("H", [1, 16, 33, 64, 79])
@pytest.mark.parametrize("B", BATCHES)
def test_each_position_of_an_lstm_comes_of_the_one_before(B, H):
    z, w, h, c, gates = states(3, B, H)
    z[1] *= 60
    native.lstm_tiles(z, w, h, c, gates)
    i, f, g, o = (z.double() + h[:-1].double() @ w.double().t()).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    check(gates, torch.cat([i, f, g, o], -1), absolute=2e-6)
    cells = f * c[:-1].double() + i * g
    check(c[1:], cells, absolute=4e-6)
    check(h[1:], o * cells.tanh(), absolute=4e-6)


@pytest.mark.parametrize("H", [1, 16, 33, 64, 79])
@pytest.mark.parametrize("B", BATCHES)
def test_an_lstms_gradients_come_of_those_of_the_next_position(B, H):
    T = 1 if H == 64 else 4
    z, w, h, c, gates = states(T, B, H)
    native.lstm_tiles(z, w, h, c, gates)
    dy, dc, dz = normal((T, B, H), HALF, 5), normal((B, H), torch.float32, 6), torch.full_like(z, NAN)
    carried = dc.double()
    native.lstm_tiles_backward(dy, w, c, gates, dc, dz)
    exact = []
    for t in reversed(range(T)):
        i, f, g, o = gates[t].double().chunk(4, -1)
        dh = dy[t].double() + (dz[t + 1].double() @ w.double() if t + 1 < T else 0)
        bent = c[t + 1].double().tanh()
        carried = carried + dh * o * (1 - bent**2)
        d_if = carried * g * i * (1 - i), carried * c[t].double() * f * (1 - f)
        exact.append(torch.cat([*d_if, carried * i * (1 - g**2), dh * bent * o * (1 - o)], -1))
        carried = carried * f
    # 1 - tanh^2 cancels; gradients and cells are up to some 5.
    check(dz, torch.stack(exact[::-1]), absolute=1e-5)
    check(dc, carried, absolute=1e-5)


def test_nan_stays_in_its_row_of_an_lstm_and_what_is_infinite_is_bounded():
    z, w, h, c, gates = states(3, 18, 33)
    h[0, 2, 32], z[1, 17, 0] = NAN, NAN
    for gate in range(4):
        z[0, 4 + 2 * gate, 33 * gate], z[0, 5 + 2 * gate, 33 * gate] = INF, -INF
        z[1, 4 + 2 * gate, 33 * gate], z[1, 5 + 2 * gate, 33 * gate] = 3e38, -3e38
    native.lstm_tiles(z, w, h, c, gates)
    bad = torch.zeros(3, 18, dtype=torch.bool)
    bad[:, 2], bad[1:, 17] = True, True
    assert torch.equal(h[1:].isnan().any(-1), bad)
    assert h[3][bad[2]].isnan().all()
    for gate in range(4):
        low = -1.0 if gate == 2 else 0.0
        assert (gates[:2, 4 + 2 * gate, 33 * gate] == 1).all()
        assert (gates[:2, 5 + 2 * gate, 33 * gate] == low).all()

    z, w, h, c, gates = states(3, 18, 33)
    native.lstm_tiles(z, w, h, c, gates)
    dy, dz = normal((3, 18, 33), HALF, 5), torch.empty_like(z)
    dy[1, 17, 4] = NAN
    native.lstm_tiles_backward(dy, w, c, gates, dc := torch.ones(18, 33), dz)
    expected = torch.zeros(3, 18, dtype=torch.bool)
    expected[:2, 17] = True
    assert torch.equal(dz.isnan().any(-1), expected)
    assert torch.equal(dc.isnan().any(-1), expected[0])


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (2, 31, 5), (33, 32, 32), (31, 33, 17), (70, 4, 65), (64, 132, 95)], ids=str
)
def test_a_linear_layers_gradients(sizes):
    N, O, I = sizes  # noqa: E741
    dy, x = normal((N, O), HALF, 1), normal((N, I), HALF, 2)
    dw, db = native.weight_gradient_tiles(dy, x)
    assert dw.dtype is db.dtype is HALF
    check(dw, dy.double().t() @ x.double(), absolute=1e-5)
    check(db, dy.double().sum(0), absolute=1e-5)


def test_nan_in_a_linear_layers_gradients_is_in_its_row_or_column_alone():
    dy, x = normal((37, 35), HALF, 1), normal((37, 41), HALF, 2)
    dy[36, 34], x[0, 40] = NAN, NAN
    dw, db = native.weight_gradient_tiles(dy, x)
    expected = torch.zeros(35, 41, dtype=torch.bool)
    expected[34], expected[:, 40] = True, True
    assert torch.equal(dw.isnan(), expected)
    assert torch.equal(db.isnan(), expected[:, 0])


def everything() -> list[Tensor]:
    hidden, weight, bias, targets = problem(70, 1500, 640)
    nll, p, tops, peak = forward(hidden, weight, bias, targets)
    found = [nll, tops, *backward(hidden, weight, p, tops, peak, normal((70,), torch.float32, 5))]
    for B in (20, 70):
        z, w, h, c, gates = states(3, B, 95)
        native.lstm_tiles(z, w, h, c, gates)
        dy, dc, dz = normal((3, B, 95), HALF, 5), torch.ones(B, 95), torch.empty_like(z)
        native.lstm_tiles_backward(dy, w, c, gates, dc, dz)
        found += [h, c, gates, dc, dz, *native.weight_gradient_tiles(dz.flatten(0, 1), dy.flatten(0, 1))]
    return found


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def test_the_same_numbers_come_out_each_time_and_on_two_threads(threads):
    one = everything()
    for number in (1, 2, 2):
        threads(number)
        assert all(torch.equal(a, b) for a, b in zip(everything(), one, strict=True))


def products() -> list[Tensor]:
    """oneDNN's, of several shapes, in one of which its own tiles are not full."""
    sizes = [(64, 64, 64), (20, 650, 256), (130, 96, 257), (1, 33, 512)]
    found = [normal((m, k), HALF, m) @ normal((k, n), HALF, n) for m, k, n in sizes]
    return [*found, F.linear(normal((37, 300), HALF, 1), normal((500, 300), HALF, 2), normal((500,), HALF, 3))]


@pytest.mark.parametrize("number", [1, 2])
def test_onednn_and_ours_do_not_disturb_each_other(number, threads):
    threads(number)
    theirs, ours = products(), everything()
    assert all(torch.equal(a, b) for a, b in zip(products(), theirs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(everything(), ours, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(products(), theirs, strict=True))
    # Between two of ours, which are configured otherwise, too.
    left, right = normal((64, 650), HALF, 1), normal((650, 256), HALF, 2)
    product = left @ right
    hidden, weight, bias, targets = problem(37, 97, 64)
    nll = forward(hidden, weight, bias, targets)[0]
    for B in (1, 20, 64):
        z, w, h, c, gates = states(2, B, 33)
        native.lstm_tiles(z, w, h, c, gates)
        assert torch.equal(left @ right, product)
        native.lstm_tiles_backward(h[1:], w, c, gates, torch.zeros(B, 33), torch.empty_like(z))
        assert torch.equal(left @ right, product)
        assert torch.equal(forward(hidden, weight, bias, targets)[0], nll)
        assert torch.equal(left @ right, product)
