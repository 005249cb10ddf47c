"""The head norm with learnable skip and output gate on a GPU, forwards and backwards: each tensor read or written once.

A tile is BT steps of one head, D the power of two that holds its DH channels; steps are counted through all rows.
The number of steps and strides are run-time numbers, for none of whose values a kernel is compiled.
"""

import triton
import triton.language as tl


@triton.jit
def _normalise(h, used, DH: tl.constexpr, eps):
    """h (BT, D) in units of its standard deviation, and the inverse of that."""
    centred = tl.where(used[None, :], h - (tl.sum(h, axis=1) / DH)[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / DH + eps)
    return centred * inverse[:, None], inverse


@triton.jit(do_not_specialize=["N", "S", "gate_b", "gate_s", "eps"])
def norm_forward(
    h,
    weight,
    convolved,
    skip,
    gate,  # strides in units of DH
    y,
    N,
    S,
    gate_b,
    gate_s,
    eps,
    NH: tl.constexpr,
    DH: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    WITH_SKIP: tl.constexpr,
    GATED: tl.constexpr,
):
    head, token = tl.program_id(1), tl.program_id(0) * BT + tl.arange(0, BT)
    unit = tl.arange(0, D)
    used, in_batch = unit < DH, token < N
    here = in_batch[:, None] & used[None, :]
    channel = head * DH + unit
    at = (token.to(tl.int64) * (NH * DH))[:, None] + channel[None, :]
    normal, _ = _normalise(tl.load(h + at, mask=here, other=0.0).to(tl.float32), used, DH, eps)
    out = normal * tl.load(weight + channel, mask=used, other=0.0).to(tl.float32)[None, :]
    if WITH_SKIP:
        c = tl.load(convolved + at, mask=here, other=0.0).to(tl.float32)
        out += c * tl.load(skip + channel, mask=used, other=0.0).to(tl.float32)[None, :]
    if GATED:
        at_z = (((token // S).to(tl.int64) * gate_b + (token % S) * gate_s) * DH)[:, None] + channel[None, :]
        z = tl.load(gate + at_z, mask=here, other=0.0).to(tl.float32)
        out *= z * tl.sigmoid(z)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["N", "S", "gate_b", "gate_s", "eps", "TILES"])
def norm_backward(
    dy,
    h,
    weight,
    convolved,
    skip,
    gate,
    dh,
    dconvolved,
    dgate,
    totals,  # (shares of the steps, 1 or 2, NH * DH): the gradients of weight and skip
    N,
    S,
    gate_b,
    gate_s,
    eps,
    TILES,  # tiles of steps that a program goes through
    NH: tl.constexpr,
    DH: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    WITH_SKIP: tl.constexpr,
    GATED: tl.constexpr,
):
    head, unit = tl.program_id(1), tl.arange(0, D)
    used, channel = unit < DH, head * DH + unit
    scale = tl.load(weight + channel, mask=used, other=0.0).to(tl.float32)[None, :]
    dscale = tl.zeros((BT, D), tl.float32)
    if WITH_SKIP:
        share = tl.load(skip + channel, mask=used, other=0.0).to(tl.float32)[None, :]
        dshare = tl.zeros((BT, D), tl.float32)
    for tile in range(TILES):
        token = (tl.program_id(0) * TILES + tile) * BT + tl.arange(0, BT)
        here = (token < N)[:, None] & used[None, :]
        at = (token.to(tl.int64) * (NH * DH))[:, None] + channel[None, :]
        normal, inverse = _normalise(tl.load(h + at, mask=here, other=0.0).to(tl.float32), used, DH, eps)
        dout = tl.load(dy + at, mask=here, other=0.0).to(tl.float32)
        if WITH_SKIP:
            c = tl.load(convolved + at, mask=here, other=0.0).to(tl.float32)
        if GATED:
            at_z = (((token // S).to(tl.int64) * gate_b + (token % S) * gate_s) * DH)[:, None] + channel[None, :]
            z = tl.load(gate + at_z, mask=here, other=0.0).to(tl.float32)
            open_ = tl.sigmoid(z)
            ungated = normal * scale
            if WITH_SKIP:
                ungated += c * share
            dz = dout * ungated * open_ * (1.0 + z * (1.0 - open_))
            tl.store(dgate + at, dz.to(dgate.dtype.element_ty), mask=here)
            dout *= z * open_
        if WITH_SKIP:
            tl.store(dconvolved + at, (dout * share).to(dconvolved.dtype.element_ty), mask=here)
            dshare += dout * c
        dscale += dout * normal
        dnormal = dout * scale
        mean, slope = tl.sum(dnormal, axis=1) / DH, tl.sum(dnormal * normal, axis=1) / DH
        dh_tile = (dnormal - mean[:, None] - normal * slope[:, None]) * inverse[:, None]
        tl.store(dh + at, dh_tile.to(dh.dtype.element_ty), mask=here)
    at_total = totals + tl.program_id(0).to(tl.int64) * ((1 + WITH_SKIP) * NH * DH) + channel
    tl.store(at_total, tl.sum(dscale, axis=0), mask=used)
    if WITH_SKIP:
        tl.store(at_total + NH * DH, tl.sum(dshare, axis=0), mask=used)
