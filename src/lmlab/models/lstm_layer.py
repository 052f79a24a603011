"""One LSTM layer, where we are quicker than oneDNN: over all positions in bf16 training, and over one position."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmlab import native
from lmlab.models import kernels

_sigmoid_backward, _tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward

# oneDNN's bf16 kernel is fast forward and slow backward; ours costs some 0.15 ms a step around the product. From this
# many multiplications in a step's recurrent product it takes over (20 rows x 650: 52 ms against 63; 64 x 256: 73
# against 60, two cores with avx512_bf16); infinity leaves all to PyTorch.
SMALLEST = 2**25
# Laying weights out for oneDNN anew in each product costs more than the product itself where rows are few: 20 x 650 x
# 2,600 takes 0.15 ms and 0.09 packed, 20 x 1,150 x 4,600 0.43 and 0.28; packing takes 0.5 and 1.1 (two cores with AMX;
# without it 0.41 and 0.32, 1.30 and 1.01). 64 x 256 x 1,024 gains nothing.
PACKED_ROWS, PACKED_WEIGHTS, PACKED_STEPS = 32, 2**22, 16


def is_quicker(x: Tensor, w_hh: Tensor) -> bool:
    """Whether `lstm_layer` beats torch.lstm for x (T, B, D) and w_hh (4 H, H): training in bf16 on a processor."""
    if not kernels.may_be_ours(x.device) or not torch.is_grad_enabled():
        return False
    half = _type(x) is torch.bfloat16 and onednn_computes_in(torch.bfloat16)
    return half and x.shape[1] * w_hh.numel() >= SMALLEST


def onednn_computes_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels in this half type for this processor: older ones have none."""
    onednn = torch.ops.mkldnn
    return onednn._is_mkldnn_fp16_supported() if dtype is torch.float16 else onednn._is_mkldnn_bf16_supported()


def _type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def lstm_layer(
    x: Float[Tensor, "T B D"],
    h: Float[Tensor, "1 B H"],
    c: Float[Tensor, "1 B H"],
    w_ih: Float[Tensor, "G D"],
    w_hh: Float[Tensor, "G H"],
    b_ih: Float[Tensor, " G"],
    b_hh: Float[Tensor, " G"],
) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "1 B H"]]:
    """All h and the last c, as torch.lstm with the same arguments, in autocast's or x's type. Once differentiable."""
    dtype = _type(x)
    bias = (b_ih + b_hh).to(dtype)
    y, c = _LSTMLayer.apply(x.to(dtype), h[0], c[0], w_ih.to(dtype), w_hh.to(dtype), bias)
    return y, c[None]


class LSTMWeights(nn.LSTM):
    """The parameters of one layer, and their products for one position."""

    def from_input(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_ih_l0, self.bias_ih_l0)

    def from_hidden(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight_hh_l0, self.bias_hh_l0)

    def step(
        self, x: Float[Tensor, "1 B D"], h: Float[Tensor, "1 B H"], c: Float[Tensor, "1 B H"]
    ) -> tuple[Float[Tensor, "1 B H"], Float[Tensor, "1 B H"]]:
        """The next h and c, fp32 also where autocast makes the products in bf16."""
        i, f, g, o = self.from_input(x).add_(self.from_hidden(h)).float().chunk(4, -1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        return o.sigmoid() * c.tanh(), c


def is_step(x: Tensor) -> bool:
    """Whether `LSTMWeights.step` beats torch.lstm for x of the weights' type: for one position without gradients, of
    fp32 weights, on a processor.

    torch.lstm lays its weights out anew at each call: 1 row x 650 1,047 us against 457, 16 rows 1,739 against 1,307, 1
    row x 200 189 against 54 (two cores with AVX-512).
    """
    one = kernels.may_be_ours(x.device) and len(x) == 1
    known = x.dtype is torch.float32 and _type(x) in (torch.float32, torch.bfloat16)
    return one and known and not torch.is_grad_enabled()


class _LSTMLayer(torch.autograd.Function):
    """(x, h, c, W_ih, W_hh, bias) -> (all h, the last c), with PyTorch's order of gates i f g o.

    x (T, B, D) and the weights (4 H, D), (4 H, H), (4 H,) have one type, in which products are made and h is kept;
    h and c (B, H) come in any type. Gates and c are fp32 inside, and c goes out as such.
    One product makes all positions' inputs, and one each their gradients; only the recurrent one is made step by step.
    """

    @staticmethod
    def forward(ctx, x, h, c, w_ih, w_hh, bias):
        (T, B, _), H = x.shape, w_hh.shape[1]
        full = torch.promote_types(x.dtype, torch.float32)
        inputs = torch.addmm(bias, x.reshape(T * B, -1), w_ih.t()).view(T, B, 4 * H)
        hidden, cells = x.new_empty(T + 1, B, H), x.new_empty(T + 1, B, H, dtype=full)
        hidden[0], cells[0] = h, c
        gates = x.new_empty(T, B, 4 * H, dtype=full)
        ctx.types = h.dtype, c.dtype
        ctx.compiled = kernels.are_compiled(inputs)
        ctx.tiles = ctx.compiled and x.dtype is torch.bfloat16 and kernels.are_tiled(x, w_hh)
        if ctx.tiles:
            w_hh = w_hh.contiguous()
            native.lstm_tiles(inputs, w_hh, hidden, cells, gates)
        elif ctx.compiled:
            product = _product(w_hh, T, B)
            rows = zip(*(t.unbind(0) for t in (inputs, hidden, cells, gates, cells[1:], hidden[1:])), strict=False)
            for a, h_before, c_before, gate, c_after, h_after in rows:
                native.lstm_step(product(h_before, a), c_before, gate, c_after, h_after)
        if ctx.compiled:
            ctx.save_for_backward(x, w_ih, w_hh, hidden, cells, gates, None)
            return hidden[1:], cells[-1].clone()
        product, bent = _product(w_hh, T, B), x.new_empty(T, B, H, dtype=full)
        # Views are made beforehand, all at once: they would cost as much as the arithmetic.
        steps = zip(
            inputs.unbind(0), hidden[:-1].unbind(0), hidden[1:].unbind(0), cells[:-1].unbind(0), cells[1:].unbind(0),
            gates.unbind(0), *(gate.unbind(0) for gate in _parts(gates)), bent.unbind(0), strict=True,
        )  # fmt: skip
        for a, h_before, h_after, c_before, c_after, gate, i_f, i, f, g, o, tanh_c in steps:
            gate.copy_(product(h_before, a))
            i_f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c_before, out=c_after)
            c_after.addcmul_(i, g)
            torch.tanh(c_after, out=tanh_c)
            torch.mul(o, tanh_c, out=h_after)
        ctx.save_for_backward(x, w_ih, w_hh, hidden, cells, gates, bent)
        return hidden[1:], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hidden, d_last):
        x, w_ih, w_hh, hidden, cells, gates, bent = ctx.saved_tensors
        (T, B, _), H = gates.shape, w_hh.shape[1]
        d_inputs = x.new_empty(T, B, 4 * H)
        dc = d_last.to(gates.dtype, memory_format=torch.contiguous_format, copy=True)
        if ctx.tiles:
            native.lstm_tiles_backward(d_hidden.contiguous(), w_hh, cells, gates, dc, d_inputs)
        elif ctx.compiled:
            _backward_compiled(d_hidden.contiguous(), dc, cells, gates, _product(w_hh.t(), T, B), d_inputs)
        else:
            _backward(d_hidden, dc, cells, gates, bent, _product(w_hh.t(), T, B), d_inputs)
        flat, inputs, before = d_inputs.view(T * B, 4 * H), x.reshape(T * B, -1), hidden[:-1].view(T * B, H)
        need = ctx.needs_input_grad
        d_x = (flat @ w_ih).view_as(x) if need[0] else None
        d_h = (d_inputs[0] @ w_hh).to(ctx.types[0]) if need[1] else None
        d_c = dc.to(ctx.types[1]) if need[2] else None
        if ctx.tiles:
            d_w_ih, d_bias = native.weight_gradient_tiles(flat, inputs.contiguous())
            return d_x, d_h, d_c, d_w_ih, native.weight_gradient_tiles(flat, before)[0], d_bias
        d_w_ih = flat.t() @ inputs if need[3] else None
        d_w_hh = flat.t() @ before if need[4] else None
        return d_x, d_h, d_c, d_w_ih, d_w_hh, flat.sum(0) if need[5] else None


def _backward(d_hidden, dc, cells, gates, bent, product, d_inputs) -> None:
    """From the last position to the first: d_inputs is written, dc becomes the gradient of the first c."""
    dh = d_hidden[-1].to(gates.dtype, copy=True)
    d_gates, d_bent = torch.empty_like(gates[0]), torch.empty_like(dc)
    d_if, d_i, d_f, d_g, d_o = _parts(d_gates)
    steps = zip(
        d_hidden.unbind(0), d_inputs.unbind(0), cells[:-1].unbind(0),
        *(gate.unbind(0) for gate in _parts(gates)), bent.unbind(0), strict=True,
    )  # fmt: skip
    after = None
    for d_h, d_input, c_before, i_f, i, f, g, o, tanh_c in reversed(list(steps)):
        if after is not None:
            torch.add(d_h, product(after), out=dh)
        dc.add_(_tanh_backward(torch.mul(dh, o, out=d_bent), tanh_c, grad_input=d_bent))
        torch.mul(dc, g, out=d_i)
        torch.mul(dc, c_before, out=d_f)
        torch.mul(dc, i, out=d_g)
        torch.mul(dh, tanh_c, out=d_o)
        _sigmoid_backward(d_if, i_f, grad_input=d_if)
        _tanh_backward(d_g, g, grad_input=d_g)
        _sigmoid_backward(d_o, o, grad_input=d_o)
        after = d_input.copy_(d_gates)
        dc.mul_(f)


def _backward_compiled(d_hidden, dc, cells, gates, product, d_inputs) -> None:
    rows = zip(*(t.unbind(0) for t in (d_hidden, gates, cells, cells[1:], d_inputs)), strict=False)
    after = None
    for d_h, gate, c_before, c_after, d_input in reversed(list(rows)):
        native.lstm_step_backward(d_h, None if after is None else product(after), dc, gate, c_before, c_after, d_input)
        after = d_input


def _product(weight: Float[Tensor, "N K"], steps: int, rows: int) -> Callable[..., Float[Tensor, "B N"]]:
    """h (B, K) and, maybe, a (B, N) -> h weight' + a, for so many steps; it may write to a."""
    packs = rows <= PACKED_ROWS and steps >= PACKED_STEPS and weight.numel() >= PACKED_WEIGHTS
    if packs and weight.dtype is torch.bfloat16 and torch.backends.cpu.get_cpu_capability() == "AVX512":
        kept, pointwise = torch.ops.mkldnn._reorder_linear_weight(weight, rows), torch.ops.mkldnn._linear_pointwise
        return lambda h, a=None: (
            pointwise(h, kept, None, "none", [], "") if a is None else pointwise.binary(h, a, kept, None, "add")
        )
    w = weight.t()
    return lambda h, a=None: torch.mm(h, w) if a is None else torch.addmm(a, h, w, out=a)


def _parts(gates: Float[Tensor, "*N G"]) -> tuple[Tensor, ...]:
    """Views: i and f together, i, f, g, o."""
    i, f, g, o = gates.chunk(4, -1)
    return gates[..., : 2 * i.shape[-1]], i, f, g, o
