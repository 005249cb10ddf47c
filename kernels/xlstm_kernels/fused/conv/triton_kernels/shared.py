"""What kernels of both directions read of a step, and their tiles of the weights."""

import triton
import triton.language as tl


@triton.jit
def channels_of_program(E: tl.constexpr, BLOCK: tl.constexpr, BC: tl.constexpr):
    """The BC channels of a program's tile, and which of them are its own: whole blocks of the maps."""
    CHANNELS: tl.constexpr = BC // BLOCK * BLOCK
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, BC)
    return channel, (tl.arange(0, BC) < CHANNELS) & (channel < E)


@triton.jit
def load_tap(conv_weight, lag: tl.constexpr, channel, used, E: tl.constexpr, K: tl.constexpr):
    """What the convolution weighs the step ``lag`` steps back with."""
    return tl.load(conv_weight + (K - 1 - lag) * E + channel, mask=used, other=0.0).to(tl.float32)


@triton.jit
def steps_since_reset(resets, token, step, here, K: tl.constexpr):
    """How many steps ago the row was last reset, at most K."""
    age = tl.full(step.shape, K, tl.int32)
    for back in tl.static_range(1, K):
        lag = K - 1 - back  # from the farthest to the nearest
        age = tl.where(tl.load(resets + token - lag, mask=here & (step >= lag), other=0) != 0, lag, age)
    return age


@triton.jit
def past(x_at, window, row, step, age, channel, here, lag: tl.constexpr, begins, x_s, E: tl.constexpr, K: tl.constexpr):
    """What the convolution reads ``lag`` > 0 steps back: the sequence, or before it the window; zero behind a reset.

    ``begins``: whether any of the steps is among the first of its row, so that the window is needed.
    """
    seen = age >= lag
    there = tl.load(x_at - lag * x_s * E, mask=here & (seen & (step >= lag))[:, None], other=0.0).to(tl.float32)
    if begins:
        at = window + ((row * (K - 1) + K - 1 + step - lag) * E)[:, None] + channel[None, :]
        before = tl.load(at, mask=here & (seen & (step < lag))[:, None], other=0.0)
        there += before.to(x_at.dtype.element_ty).to(tl.float32)
    return there


@triton.jit
def map_tile(weight, channel, used, BLOCK: tl.constexpr, TYPE: tl.constexpr):
    """The tile [out, in] of a block-diagonal matrix given as (blocks, out, in)."""
    rows, columns = channel[:, None], channel[None, :]
    same = (rows // BLOCK == columns // BLOCK) & used[:, None] & used[None, :]
    return tl.load(weight + rows * BLOCK + columns % BLOCK, mask=same, other=0.0).to(TYPE)


@triton.jit
def gate_tile(weight, part: tl.constexpr, channel, used, E: tl.constexpr, NH: tl.constexpr, GATES: tl.constexpr, TYPE):
    """What the gates read of these channels of q, k or v (part 0, 1, 2): [gate, channel]."""
    gate = tl.arange(0, GATES)
    at = weight + gate[:, None] * (3 * E) + part * E + channel[None, :]
    return tl.load(at, mask=(gate < 2 * NH)[:, None] & used[None, :], other=0.0).to(TYPE)
