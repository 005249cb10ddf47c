"""What of the mLSTM depends on gates and resets alone, many chunks at once. Shapes and letters: shared.py."""

import triton
import triton.language as tl

from .shared import (
    LOWEST,
    closing_exponent,
    from_natural,
    largest,
    largest_of_segment,
    load_gates,
    load_m,
    load_segments,
    of_segment_0,
    power,
    sigmoid_of_negative,
    to_natural,
)
from .tape import (
    AT_A,
    AT_CLOSING,
    AT_DECAY,
    AT_FLOOR,
    AT_FORGETS,
    AT_M,
    AT_M_BEFORE,
    AT_SEGMENT,
    AT_WRITTEN,
    of_chunk,
    record_of,
)


@triton.jit
def _then(kept_x, most_x, kept_y, most_y):
    """The map m -> max(kept + m, most) of some chunks, then that of later ones."""
    return kept_x + kept_y, tl.maximum(kept_y + most_x, most_y)


@triton.jit
def record_gates(
    I,  # noqa: E741
    F,
    RESETS,
    M_FIRST,
    M_LAST,
    TAPE,
    g_batch,
    g_step,
    g_head,
    S,
    NH,
    at,
    DK: tl.constexpr,
    L: tl.constexpr,
    CHUNKS: tl.constexpr,
    FRESH: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    RECORD: tl.constexpr,
    LOGS: tl.constexpr,
):
    """Fill the records of a head of a row with what its gates and resets say, CHUNKS of them at a time.

    A scan over the steps of a chunk is then a warp's own, and each waits for the others once, not once a chunk.
    """
    row, head = at // NH, at % NH
    NC = tl.cdiv(S, L)
    chunks, steps = tl.arange(0, CHUNKS), tl.arange(0, L)
    m_natural = tl.cast(-float("inf"), tl.float32)
    if not FRESH:
        m_natural = load_m(M_FIRST, at, RESETS, row, S, WITH_RESETS)
    for first in range(0, NC, CHUNKS):
        chunk = (first + chunks).to(tl.int64)
        t = chunk[:, None] * L + steps[None, :]  # (CHUNKS, L)
        inside = t < S
        i, logf, f = load_gates(I, F, row * g_batch + t * g_step + head * g_head, inside, LOGS)
        segment = load_segments(RESETS, row * S, t, inside, 1, WITH_RESETS)
        b = tl.cumsum(logf, 1)
        a = i - b
        forgotten = tl.sum(logf, 1)  # (CHUNKS,)
        if WITH_RESETS:
            last_segment = tl.max(segment, 1)
            _, M = tl.associative_scan((segment, a), 1, largest_of_segment)
            to_end = tl.where(segment == last_segment[:, None], a, -float("inf"))
        else:
            last_segment = tl.zeros((CHUNKS,), tl.int32)
            M = tl.associative_scan(a, 1, largest)
            to_end = a
        most = tl.max(to_end, 1)
        carried, written = tl.associative_scan(
            (of_segment_0(forgotten, last_segment, WITH_RESETS), forgotten + most), 0, _then
        )
        natural_after = to_natural(tl.maximum(carried + from_natural(m_natural, LOGS), written))
        before = chunks[:, None] == chunks[None, :] + 1
        natural_before = tl.sum(tl.where(before, natural_after[None, :], 0.0), 1)
        natural_before = tl.where(chunks == 0, m_natural, natural_before)
        m_natural = tl.sum(tl.where(chunks == CHUNKS - 1, natural_after, 0.0), 0)
        m_before, m_after = from_natural(natural_before, LOGS), from_natural(natural_after, LOGS)

        kept = of_segment_0(m_before, last_segment, WITH_RESETS)
        closing = closing_exponent(m_after, forgotten, tl.maximum(kept, most))
        M = tl.maximum(tl.maximum(of_segment_0(m_before[:, None], segment, WITH_RESETS), M), LOWEST)
        CHUNK = record_of(TAPE, at * NC + chunk, L, DK)  # (CHUNKS,)
        known = chunk < NC
        tl.store(of_chunk(CHUNK, AT_M_BEFORE, L, DK), m_before, mask=known)
        tl.store(of_chunk(CHUNK, AT_DECAY, L, DK), power(kept + closing), mask=known)
        STEP, known = CHUNK[:, None] + steps[None, :], known[:, None]  # (CHUNKS, L)
        tl.store(STEP + AT_A * L, a, mask=known)
        tl.store(STEP + AT_WRITTEN * L, power(to_end + closing[:, None]), mask=known)
        tl.store(STEP + AT_M * L, M, mask=known)
        tl.store(STEP + AT_FLOOR * L, -(b + M), mask=known)
        if WITH_RESETS:
            tl.store(STEP + AT_SEGMENT * L, segment, mask=known)
        if RECORD:  # what only the way back reads
            tl.store(of_chunk(CHUNK, AT_CLOSING, L, DK), closing, mask=chunk < NC)
            tl.store(STEP + AT_FORGETS * L, sigmoid_of_negative(f), mask=known)
    tl.store(M_LAST + at, m_natural)


@triton.jit(do_not_specialize=["S", "NH", "g_batch", "g_step", "g_head"])
def mlstm_gates(
    I,  # noqa: E741
    F,
    RESETS,
    M_FIRST,
    M_LAST,
    TAPE,
    g_batch,
    g_step,
    g_head,
    S,
    NH,
    DK: tl.constexpr,
    L: tl.constexpr,
    CHUNKS: tl.constexpr,
    FRESH: tl.constexpr,
    WITH_RESETS: tl.constexpr,
    RECORD: tl.constexpr,
    LOGS: tl.constexpr,
):
    """One program a head of a row."""
    at = tl.program_id(0).to(tl.int64)  # of (B, NH)
    record_gates(
        *(I, F, RESETS, M_FIRST, M_LAST, TAPE, g_batch, g_step, g_head, S, NH, at),
        *(DK, L, CHUNKS, FRESH, WITH_RESETS, RECORD, LOGS),
    )
