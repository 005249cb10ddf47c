"""sLSTM in C: one call for a whole sequence forward, one for its exact backward.

Pointers are taken inside the operators alone, where tensors are real.

Shapes: B batch, S sequence, NH heads, DH head dim, a multiple of ``core.PANEL`` inside.
"""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import buffers, core
from .operators import Gradients, Outputs, register_slstm


def _forward(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    state: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
    record: bool,
) -> Outputs:
    unpadded = gates.shape[-1]
    gates, bias, state = (_fill_panel(x, 1).contiguous() for x in (gates, bias, state))
    B, S, _, NH, DH = gates.shape
    weight = _fill_panel(recurrent_weight, 2)
    h, last = gates.new_empty(B, S, NH, DH), torch.empty_like(state)
    tape = buffers.empty((B, S, NH, 5, DH), like=gates) if record else None
    if tape is not None and lengths is not None:
        tape.zero_()  # rows write their own steps alone
    panels = core.to_panels(weight.permute(1, 3, 0, 2).reshape(NH, DH, 4 * DH))  # [head, in, (gate, out)]
    arrays = (gates, bias, panels, *_limits(resets, lengths), state, h, tape, last)
    _call("forward", h, *arrays, ctypes.c_int(exponential_forget))
    h, last = (x[..., :unpadded].contiguous() for x in (h, last))
    return h, last, gates.new_empty(0) if tape is None else tape


def _forward_fake(
    gates: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    state: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
    record: bool,
) -> Outputs:
    B, S, _, NH, DH = gates.shape
    tape = (B, S, NH, 5, core.whole(DH))
    return gates.new_empty(B, S, NH, DH), state.new_empty(state.shape), gates.new_empty(tape if record else 0)


def _backward(
    dh: Tensor,
    dlast: Tensor,
    recurrent_weight: Tensor,
    state: Tensor,
    h: Tensor,
    tape: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    exponential_forget: bool,
    clip: float | None,
) -> Gradients:
    unpadded = dh.shape[-1]
    dh, dlast = (_fill_panel(x, 1).contiguous() for x in (dh, dlast))
    weight = _fill_panel(recurrent_weight, 2)
    B, S, NH, DH = dh.shape
    dgates, dstate = buffers.empty((B, S, 4, NH, DH), like=dh), torch.zeros_like(dlast)
    panels = core.to_panels(weight.permute(1, 0, 2, 3).reshape(NH, 4 * DH, DH))  # [head, (gate, out), in]
    blocks = dh.new_zeros(torch.get_num_threads(), 4 * NH * DH * (1 + DH))  # of bias and weight, one a thread
    begin = _fill_panel(state[0], 1).contiguous()
    arrays = (panels, *_limits(resets, lengths), begin, tape, dh, dlast, dgates, dstate, blocks)
    _call("backward", dh, *arrays, ctypes.c_float(torch.inf if clip is None else clip))
    dbias, dweight = blocks[0].split([4 * NH * DH, 4 * NH * DH * DH])
    dbias, dweight = dbias.view(4, NH, DH), dweight.view(NH, 4, DH, DH).transpose(0, 1)
    dgates, dstate, dbias = (x[..., :unpadded].contiguous() for x in (dgates, dstate, dbias))
    return dgates, dweight[..., :unpadded, :unpadded].contiguous(), dbias.clone(), dstate


def _backward_fake(
    dh: Tensor, dlast: Tensor, recurrent_weight: Tensor, state: Tensor, h: Tensor, *rest: object
) -> Gradients:
    B, S, NH, DH = h.shape
    weight = recurrent_weight
    dgates, dbias = h.new_empty(B, S, 4, NH, DH), h.new_empty(4, NH, DH)
    return dgates, weight.new_empty(weight.shape), dbias, state.new_empty(state.shape)


def _fill_panel(x: Tensor, dims: int) -> Tensor:
    """Zeros up to whole panels in the last ``dims`` dimensions: padded units read zeros and stay zero."""
    missing = -x.shape[-1] % core.PANEL
    return F.pad(x, (0, missing) * dims) if missing else x


def _limits(resets: Tensor | None, lengths: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Resets and lengths as the core reads them."""
    return core.contiguous(resets, None if lengths is None else lengths.long())


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("B", "S", "NH", "DH")]


def _call(name: str, like: Tensor, *arguments: Tensor | ctypes.c_int | ctypes.c_float | None) -> None:
    """Call ``xlstm_slstm_<name>`` for the sizes of ``like``, h (B, S, NH, DH)."""
    library = core.load()
    assert library is not None
    sizes = _Sizes(*like.shape)
    passed = (core.pointer(x) if x is None or isinstance(x, Tensor) else x for x in arguments)
    if getattr(library, f"xlstm_slstm_{name}")(ctypes.byref(sizes), *passed, ctypes.c_int(torch.get_num_threads())):
        raise MemoryError(f"the compiled sLSTM could not allocate its working memory, {like.shape[-1]} units a head")


slstm_compiled = register_slstm("slstm_compiled", _forward, _forward_fake, _backward, _backward_fake, device="CPU")
