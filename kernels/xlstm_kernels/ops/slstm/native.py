"""sLSTM in PyTorch: one loop over the steps on the memory as an average, and a backward pass written by hand.

Shapes: B batch, S sequence, NH heads, DH head dim; inside the loop time and heads lead: (S, NH, B, DH).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..loops import mix, mixing_matrices, step_flags, step_inputs
from ..padding import valid_steps
from .average import advance, advance_relative
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
    S, matrices = gates.shape[1], mixing_matrices(recurrent_weight)
    valid = None if lengths is None else valid_steps(lengths, S)
    step_on = advance_relative if exponential_forget else advance
    memory = state.transpose(1, 2).unbind(0)  # (NH, B, DH) each
    outputs, tape = [], []
    for step, reset, own in zip(step_inputs(gates, bias), step_flags(resets, S), step_flags(valid, S), strict=True):
        h, y, lam, m = memory
        if reset is not None:
            h, y = h.masked_fill(reset, 0.0), y.masked_fill(reset, 0.0)
            lam, m = lam.masked_fill(reset, -torch.inf), m.masked_fill(reset, -torch.inf)
        i, f, z, o = mix(step, h, matrices)
        logf, z, o = f if exponential_forget else F.logsigmoid(f), torch.tanh(z), torch.sigmoid(o)
        alpha, lam, m = step_on(i, logf, lam, m)
        y = torch.lerp(y, z, alpha)
        after: tuple[Tensor, ...] = (o * y, y, lam, m)
        outputs.append(after[0])
        if own is not None:
            after = tuple(torch.where(own, new, old) for new, old in zip(after, memory, strict=True))
            outputs[-1] = outputs[-1].masked_fill(~own, 0.0)
        memory = after
        if record:
            tape.append((y, z, o, alpha, f))
    last = torch.stack([x.transpose(0, 1) for x in memory])  # (4, B, NH, DH)
    stacked = [step for parts in zip(*tape, strict=True) for step in parts]
    recorded = torch.stack(stacked).unflatten(0, (-1, S)) if record else gates.new_empty(0)  # (5, S, NH, B, DH)
    return torch.stack(outputs).permute(2, 0, 1, 3), last, recorded


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
    h = gates.new_empty(S, NH, B, DH).permute(2, 0, 1, 3)
    return h, state.new_empty(state.shape), gates.new_empty((5, S, NH, B, DH) if record else 0)


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
    B, S, NH, DH = h.shape
    weight = recurrent_weight.permute(1, 0, 2, 3).reshape(NH, 4 * DH, DH)  # [head, (gate, out), in]
    h, dh = h.permute(1, 2, 0, 3), dh.permute(1, 2, 0, 3)  # (S, NH, B, DH)
    y, z, o, alpha, f = tape.unbind(0)
    f_slope = torch.ones_like(f) if exponential_forget else torch.sigmoid(-f)
    valid = None if lengths is None else valid_steps(lengths, S)
    if valid is not None:  # without these factors a step changes and takes nothing
        outside = ~valid.t()[:, None, :, None]  # (S, 1, B, 1)
        dh, o, alpha, f_slope = (x.masked_fill(outside, 0.0) for x in (dh, o, alpha, f_slope))
    # All that depends on time alone is worked in one go; the loop keeps only what is recurrent.
    factors = (dh, o, alpha, z - y, f_slope, alpha * (1 - z * z), h * (1 - o), 1 - alpha)
    flags = step_flags(None if resets is None else (~resets).to(h.dtype), S), step_flags(valid, S)
    steps = list(zip(*(factor.unbind(0) for factor in factors), *flags, strict=True))
    dsteps = torch.empty(S, NH, B, 4, DH, dtype=h.dtype, device=h.device)
    mixed, p, q, _ = dlast.transpose(1, 2)  # of h through the recurrent weights, of y and of lam
    for t in reversed(range(S)):
        dh_t, o_t, alpha_t, toward, f_slope_t, z_slope, o_slope, forget, keep, own = steps[t]
        g = dh_t + mixed
        p = torch.addcmul(p, g, o_t)
        di = alpha_t * torch.addcmul(q, p, toward)
        q = q - di
        torch.stack((di, q * f_slope_t, p * z_slope, g * o_slope), dim=2, out=dsteps[t])
        p = p * forget
        mixed_after, mixed = mixed, torch.bmm(dsteps[t].view(NH, B, 4 * DH), weight)
        if clip is not None:
            mixed = mixed.clamp(-clip, clip)
        if keep is not None:
            p, q, mixed = p * keep, q * keep, mixed * keep
        if own is not None:
            mixed = torch.where(own, mixed, mixed_after)
    h_before = torch.cat([state[0].transpose(0, 1)[None], h[:-1]])
    if resets is not None:
        h_before = h_before.masked_fill(resets.t()[:, None, :, None], 0.0)
    dgates = dsteps.permute(2, 0, 3, 1, 4)
    dweight = torch.einsum("snbgo,snbi->gnoi", dsteps, h_before).contiguous()
    dstate = torch.stack([x.transpose(0, 1) for x in (mixed, p, q, torch.zeros_like(q))])
    return dgates, dweight, dgates.sum((0, 1)), dstate


def _backward_fake(
    dh: Tensor, dlast: Tensor, recurrent_weight: Tensor, state: Tensor, h: Tensor, *rest: object
) -> Gradients:
    B, S, NH, DH = h.shape
    dgates = h.new_empty(S, NH, B, 4, DH).permute(2, 0, 3, 1, 4)
    weight = recurrent_weight
    return dgates, weight.new_empty(weight.shape), weight.new_empty(4, NH, DH), state.new_empty(state.shape)


slstm_native = register_slstm("slstm_native", _forward, _forward_fake, _backward, _backward_fake)
