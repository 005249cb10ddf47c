"""The tape: what the mLSTM's Triton kernels leave behind on the way forward, one flat record for each chunk.

A record has numbers of the chunk's L steps, one kind behind the other, then n before the chunk, (DK,), then numbers of
the chunk. All distances within it are known when a kernel is compiled, so one address serves all loads, wide ones; and
a step behind the end of the sequence has its numbers like any other, so that whole chunks are read without a mask.
Loops over tiles of steps have one nonetheless: it keeps Triton from loading two numbers at once, which is slower there.
Letters: shared.py.
"""

import triton
import triton.language as tl

STEP_NUMBERS = tl.constexpr(8)
AT_A, AT_U = tl.constexpr(0), tl.constexpr(1)
AT_SLOPE = tl.constexpr(2)  # minus that of the denominator over l
AT_FORGETS = tl.constexpr(3)  # the slope of log f over f's pre-activation
AT_SEGMENT = tl.constexpr(4)  # only where there are resets
# What the gates of all chunks leave for the walk over them, or for kernels that run apart.
AT_WRITTEN = tl.constexpr(5)  # the weight in the state after the chunk
AT_M, AT_FLOOR = tl.constexpr(6), tl.constexpr(7)  # M and log2 of the floor

CHUNK_NUMBERS = tl.constexpr(3)
AT_M_BEFORE, AT_CLOSING = tl.constexpr(0), tl.constexpr(1)
AT_DECAY = tl.constexpr(2)  # the share of the state that the chunk keeps

ALIGNMENT = tl.constexpr(16)  # numbers, that loads of several at once need


@triton.jit
def record_size(L: tl.constexpr, DK: tl.constexpr):
    """Of a record of the tape, in numbers; on the host, ``record_size.fn``."""
    return (STEP_NUMBERS * L + DK + CHUNK_NUMBERS + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@triton.jit
def record_of(TAPE, chunk, L: tl.constexpr, DK: tl.constexpr):
    """The record of one of all (B, NH, NC) chunks."""
    return TAPE + chunk * record_size(L, DK)


@triton.jit
def of_n(RECORD, L: tl.constexpr):
    return RECORD + STEP_NUMBERS * L


@triton.jit
def of_chunk(RECORD, number: tl.constexpr, L: tl.constexpr, DK: tl.constexpr):
    return RECORD + STEP_NUMBERS * L + DK + number


@triton.jit
def load_segment(RECORD, steps, L: tl.constexpr, WITH_RESETS: tl.constexpr):
    """The number of resets in the chunk up to each step."""
    segment = tl.zeros(steps.shape, tl.int32)
    if WITH_RESETS:
        segment = tl.load(RECORD + AT_SEGMENT * L + steps).to(tl.int32)
    return segment


@triton.jit
def load_of_keys(NUMBERS, keys, DK: tl.constexpr):
    """Numbers of keys, zero of those that the head does not have."""
    if DK // keys.shape[0] * keys.shape[0] == DK:
        numbers = tl.load(NUMBERS + keys)
    else:
        numbers = tl.load(NUMBERS + keys, mask=keys < DK, other=0.0)
    return numbers.to(tl.float32)
