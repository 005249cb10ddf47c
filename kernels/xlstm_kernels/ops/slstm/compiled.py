"""sLSTM in C: one call for a whole sequence forward, one backward, the weights' gradient as one matrix product.

Shapes: B batch, S sequence, NH heads, DH head dim, a multiple of PANEL inside.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ... import core
from ...state import sLSTMState
from .average import from_average, to_average

PANEL = 16  # as in csrc/core.c


def slstm_compiled(
    gates: Tensor, recurrent_weight: Tensor, bias: Tensor, state: sLSTMState, resets: Tensor | None
) -> tuple[Tensor, sLSTMState]:
    """The contract of ``slstm``, for tensors that ``core.runs``."""
    DH = gates.shape[-1]
    gates_, bias, h0, c0, n0, m0 = (_fill_panel(x.float(), 1) for x in (gates, bias, *state))
    weight, m0 = _fill_panel(recurrent_weight.float(), 2), m0.detach()
    h, y, lam, m = _Recurrence.apply(
        gates_, bias, weight, h0, *to_average(c0, n0, m0), m0, resets, torch.is_grad_enabled()
    )
    c, n = from_average(y, lam, m)
    last = sLSTMState(*(x[..., :DH].clone() for x in (h[:, -1], c, n, m)))  # views would keep all of h alive
    return h[..., :DH].to(gates.dtype), last


def _fill_panel(x: Tensor, dims: int) -> Tensor:
    """Zeros up to a multiple of PANEL in the last ``dims`` dimensions: padded units read zeros and stay zero."""
    missing = -x.shape[-1] % PANEL
    return F.pad(x, (0, missing) * dims) if missing else x


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("B", "S", "NH", "DH")]


class _Recurrence(torch.autograd.Function):
    """Gates (B, S, 4, NH, DH) to h (B, S, NH, DH) and the last y, lam, m."""

    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        bias: Tensor,
        weight: Tensor,
        h0: Tensor,
        y0: Tensor,
        lam0: Tensor,
        m0: Tensor,
        resets: Tensor | None,
        record: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        B, S, _, NH, DH = gates.shape
        h = gates.new_empty(B, S, NH, DH)
        tape = gates.new_empty(B, S, NH, 5, DH) if record and any(ctx.needs_input_grad) else None
        state = torch.stack((h0, y0, lam0, m0))
        last = torch.empty_like(state)
        panels = to_panels(weight.permute(1, 3, 0, 2).reshape(NH, DH, 4 * DH))  # [head, in, (gate, out)]
        flags = None if resets is None else resets.contiguous()
        _call("forward", gates, gates.contiguous(), bias.contiguous(), panels, flags, state, h, tape, last)
        if tape is not None:
            ctx.save_for_backward(weight, h0, h, tape, flags)
        _, y, lam, m = last.unbind(0)
        ctx.mark_non_differentiable(m)
        return h, y, lam, m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, dy: Tensor, dlam: Tensor, _dm: Tensor) -> tuple[Tensor | None, ...]:
        weight, h0, h, tape, flags = ctx.saved_tensors
        B, S, NH, DH = h.shape
        dgates = h.new_empty(B, S, 4, NH, DH)
        dlast = torch.stack((torch.zeros_like(dy), dy, dlam))
        dstate = torch.empty_like(dlast)
        panels = to_panels(weight.permute(1, 0, 2, 3).reshape(NH, 4 * DH, DH))  # [head, (gate, out), in]
        _call("backward", h, panels, flags, tape, dh.contiguous(), dlast, dgates, dstate)
        h_before = torch.cat([h0[:, None], h[:, :-1]], dim=1)
        if flags is not None:
            h_before = h_before.masked_fill(flags[..., None, None], 0.0)
        # Views that BLAS reads as they are; einsum would copy them first, for longer than it multiplies.
        dsteps = dgates.flatten(0, 1).permute(1, 2, 3, 0)  # (4, NH, DH, B * S)
        inputs = h_before.flatten(0, 1).transpose(0, 1)  # (NH, B * S, DH)
        dweight = torch.stack([torch.bmm(gate, inputs) for gate in dsteps])
        return dgates, dgates.sum((0, 1)), dweight, *dstate.unbind(0), None, None, None


def to_panels(matrices: Tensor) -> Tensor:
    """(NH, rows, columns) with the columns cut into panels that lie together: (NH, columns / PANEL, rows, PANEL)."""
    return matrices.unflatten(2, (-1, PANEL)).transpose(1, 2).contiguous()


def _call(name: str, like: Tensor, *arrays: Tensor | None) -> None:
    """Call ``xlstm_slstm_<name>`` for the sizes of ``like``, gates (B, S, 4, NH, DH) or h (B, S, NH, DH)."""
    library = core.load()
    assert library is not None
    sizes = _Sizes(like.shape[0], like.shape[1], *like.shape[-2:])
    pointers = (core.pointer(array) for array in arrays)
    if getattr(library, f"xlstm_slstm_{name}")(ctypes.byref(sizes), *pointers, ctypes.c_int(torch.get_num_threads())):
        raise MemoryError(f"the compiled sLSTM could not allocate its working memory, {like.shape[-1]} units a head")
