"""Elementwise functions of Triton kernels by the hardware's own units, exact to float32's last bits.

Triton's own division carries guards for subnormal numbers, several instructions for each element: here these are zero.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # the interpreter knows no PTX


@triton.jit
def reciprocal(x):
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid(x):
    return reciprocal(1.0 + tl.exp2(-1.4426950408889634 * x))
