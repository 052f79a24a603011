import pytest
import torch
from torch import nn

from lmlab.models import lstm_layer as module
from lmlab.models.lstm_layer import is_quicker, lstm_layer

B, D, H = 3, 5, 4


def problem(T, dtype=torch.float64):
    torch.manual_seed(0)
    rnn = nn.LSTM(D, H).to(dtype)
    for p in rnn.parameters():
        nn.init.normal_(p)
    x, h, c = (torch.randn(*n, dtype=dtype, requires_grad=True) for n in ((T, B, D), (1, B, H), (1, B, H)))
    return x, h, c, *rnn.parameters()


def theirs(x, h, c, *weights):
    y, _, c = torch.lstm(x, [h, c], weights, True, 1, 0.0, True, False, False)
    return y, c


def gradients(outputs, inputs):
    """Of an arbitrary mixture of all outputs; the last c counts too."""
    g = torch.Generator().manual_seed(1)
    total = sum((o.double() * torch.randn(o.shape, generator=g, dtype=torch.float64)).sum() for o in outputs)
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("T", [1, 2, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_pytorchs_lstm_with_all_its_gradients(T, dtype, tolerance):
    inputs = problem(T, dtype)
    ours, expected = lstm_layer(*inputs), theirs(*inputs)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    for a, b in zip(gradients(ours, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_gradients_agree_with_finite_differences():
    assert torch.autograd.gradcheck(lstm_layer, problem(3))


def test_a_state_carried_on_with_its_history_gives_the_whole_texts_gradient():
    x, h, c, *weights = inputs = problem(6)
    first, middle = lstm_layer(x[:2], h, c, *weights)
    second, last = lstm_layer(x[2:], first[-1:], middle, *weights)
    halves = gradients((torch.cat([first, second]), last), inputs)
    for a, b in zip(halves, gradients(lstm_layer(*inputs), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_bf16_errs_no_more_than_pytorchs_own():
    sizes = {"T": 20, "B": 8, "H": 32}
    torch.manual_seed(0)
    rnn = nn.LSTM(sizes["H"], sizes["H"])
    shape = (sizes["T"], sizes["B"], sizes["H"])
    exact = [t.bfloat16().double().detach().requires_grad_() for t in (torch.randn(shape), *rnn.parameters())]
    zeros = torch.zeros(1, *shape[1:])

    def run(f, dtype):
        x, *weights = (t.to(dtype) for t in exact)
        y, c = f(x, zeros.to(dtype), zeros.to(dtype), *weights)
        return (y.double(), c.double(), *gradients((y, c), exact))

    true, ours, plain = run(theirs, torch.float64), run(lstm_layer, torch.bfloat16), run(theirs, torch.bfloat16)
    # Ours rounds the gates' two sums, theirs c: y errs a fifth more, c and all gradients less.
    y, *others = [((a - t).norm() / (b - t).norm()).item() for t, a, b in zip(true, ours, plain, strict=True)]
    assert y < 1.3
    assert max(others) < 1.0


def test_under_autocast_it_computes_in_its_type_and_gradients_keep_theirs():
    x, h, c, *weights = problem(4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, last = lstm_layer(x, h, c, *weights)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert {g.dtype for g in gradients((y, last), [x, h, c, *weights])} == {torch.float32}


def test_it_is_taken_for_training_in_bf16_only(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 0)
    # Whatever this machine's processor has kernels for.
    monkeypatch.setattr(module, "onednn_computes_in", lambda dtype: True)
    x, _, _, _, w, *_ = problem(2, torch.float32)
    assert not is_quicker(x, w)
    assert is_quicker(x.bfloat16(), w.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert is_quicker(x, w)
    with torch.no_grad():
        assert not is_quicker(x.bfloat16(), w.bfloat16())
    monkeypatch.setattr(module, "SMALLEST", 10**9)
    assert not is_quicker(x.bfloat16(), w.bfloat16())


def test_packed_weights_give_the_same_products(monkeypatch):
    """Where a processor packs none, both are the plain path."""
    inputs = problem(5, torch.bfloat16)
    plain = lstm_layer(*inputs)
    plain = [*plain, *gradients(plain, inputs)]
    for name, value in {"PACKED_WEIGHTS": 0, "PACKED_STEPS": 1}.items():
        monkeypatch.setattr(module, name, value)
    h, into = torch.ones(B, H, dtype=torch.bfloat16), torch.ones(B, 4 * H, dtype=torch.bfloat16)
    in_place = module._product(inputs[4].detach(), 5, B)(h, into) is into  # as the plain path alone is
    assert in_place == (torch.backends.cpu.get_cpu_capability() != "AVX512")
    packed = lstm_layer(*inputs)
    for a, b in zip([*packed, *gradients(packed, inputs)], plain, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)
