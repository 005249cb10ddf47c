"""The one config that describes a stack, and the paper's notation for where its sLSTM blocks stand."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from .checks import check_boolean, check_choice, check_integer, check_positive
from .init import INPUT_GATE_INITS, RECURRENT_INITS
from .layers import NORMS


@dataclass(frozen=True, kw_only=True)
class xLSTMConfig:
    """What an ``xLSTMBlockStack`` is made of; survives ``xLSTMConfig(**json.loads(json.dumps(asdict(config))))``.

    None stands for what the kind of block is published with.

    Attributes:
        embedding_dim: width D of the residual stream.
        num_blocks: number of blocks.
        num_heads: heads of every memory.
        slstm_at: where sLSTM blocks stand, the others are mLSTM. Indices, negative ones count from the end; or the
            paper's ratio "a:b", a mLSTM to b sLSTM blocks: of each a + b blocks the last b are sLSTM blocks, so "7:1"
            is xLSTM[7:1] and "0:1" sLSTM throughout. Stored as indices.
        mlstm_block: ``paper``, or ``7b`` for the block of xLSTM 7B (dense maps at the embedding's width and a SwiGLU
            FFN: faster on large models, worse on small ones).
        slstm_block: ``paper``, or ``tirex`` for the block of TiRex (no convolution, RMS norms, a SwiGLU FFN).
        projection_factor: inner width of the paper's mLSTM block as a multiple of D.
        ffn_factor: hidden width of the FFNs as a multiple of D; None is 4/3 in the paper's sLSTM block, 8/3 elsewhere.
        ffn_round_to: multiple that this width is rounded up to (64 in the paper's code, which small models pay for).
        conv_kernel_size: steps that the convolutions of the paper's blocks look back over; 0 leaves them out.
        qkv_block_size: channels that a block of the paper's mLSTM block's query, key and value maps mixes.
        learnable_skip: the skip around the memory in the paper's mLSTM block.
        norm: ``layer`` or ``rms``, in front of mixers and FFNs; the last block's is the final norm's too. None is
            ``layer`` in the paper's blocks, ``rms`` elsewhere.
        gate_soft_cap: bound that the mLSTM's gate pre-activations are squashed to; None is no bound in the paper's
            block, 15 in 7B's.
        input_gate: of the mLSTM, ``exponential`` or ``sigmoid`` (no stabiliser to carry, published to cost no quality).
        normalize: divide the mLSTM's outputs by its normaliser; not needed beside a sigmoid input gate.
        forget_gate: of the sLSTM, ``sigmoid`` or ``exponential``.
        recurrent_gradient_clip: bound on the gradient that the sLSTM sends back through its recurrent weight, an entry
            at a time; None is no bound.
        input_gate_init: start of the mLSTM's input gate's bias. ``normal`` is N(0, 0.1); ``closed`` is -10, which keeps
            large models from gradient spikes, with a head norm's epsilon of 1e-6 to match. None is ``normal`` in the
            paper's block, ``closed`` in 7B's.
        recurrent_init: start of the sLSTM's recurrent weight: ``zeros``, from where units learn to mix, or ``uniform``
            within 1 / sqrt(DH), as an LSTM's.
        dropout: share of each block's outputs dropped in training.
        checkpoint: keep only each block's inputs in training, and run the block again in the backward pass: a second
            forward pass for the memory of one block instead of all.

    Raises:
        ValueError: a value is out of range or unknown, or the ratio does not divide the blocks.
    """

    embedding_dim: int
    num_blocks: int
    num_heads: int = 4
    slstm_at: Sequence[int] | str = ()
    mlstm_block: str = "paper"
    slstm_block: str = "paper"
    projection_factor: float = 2.0
    ffn_factor: float | None = None
    ffn_round_to: int = 8
    conv_kernel_size: int = 4
    qkv_block_size: int = 4
    learnable_skip: bool = True
    norm: str | None = None
    gate_soft_cap: float | None = None
    input_gate: str = "exponential"
    normalize: bool = True
    forget_gate: str = "sigmoid"
    recurrent_gradient_clip: float | None = None
    input_gate_init: str | None = None
    recurrent_init: str = "zeros"
    dropout: float = 0.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        for name, minimum in _MINIMA.items():
            check_integer(name, getattr(self, name), minimum=minimum)
        for name in ("projection_factor", "ffn_factor", "gate_soft_cap", "recurrent_gradient_clip"):
            if name not in _OPTIONAL or getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name, choices in _CHOICES.items():
            if name not in _OPTIONAL or getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        for name in ("learnable_skip", "normalize", "checkpoint"):
            check_boolean(name, getattr(self, name))
        if not isinstance(self.dropout, Real) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number in [0, 1), got {self.dropout!r}")
        # The one field that is rewritten: JSON brings lists, people bring ratios.
        object.__setattr__(self, "slstm_at", resolve_indices(self.slstm_at, self.num_blocks))

    @property
    def slstm_blocks(self) -> frozenset[int]:
        """``slstm_at`` counted from the front."""
        return frozenset(int(index) % self.num_blocks for index in self.slstm_at)

    @property
    def final_norm(self) -> str:
        """The norm after the last block: that of the last block itself."""
        last = self.slstm_block if self.num_blocks - 1 in self.slstm_blocks else self.mlstm_block
        return self.norm or ("layer" if last == "paper" else "rms")


_OPTIONAL = ("ffn_factor", "norm", "gate_soft_cap", "recurrent_gradient_clip", "input_gate_init")
_MINIMA = {
    "embedding_dim": 1,
    "num_blocks": 1,
    "num_heads": 1,
    "ffn_round_to": 1,
    "conv_kernel_size": 0,
    "qkv_block_size": 1,
}
_CHOICES = {
    "mlstm_block": ("paper", "7b"),
    "slstm_block": ("paper", "tirex"),
    "norm": NORMS,
    "input_gate": ("exponential", "sigmoid"),
    "forget_gate": ("sigmoid", "exponential"),
    "input_gate_init": INPUT_GATE_INITS,
    "recurrent_init": RECURRENT_INITS,
}


def resolve_indices(slstm_at: Sequence[int] | str, num_blocks: int) -> tuple[int, ...]:
    """The indices that ``slstm_at`` names, by a list or by a ratio.

    >>> resolve_indices("3:1", 8)
    (3, 7)
    """
    if isinstance(slstm_at, str):
        return _ratio_indices(slstm_at, num_blocks)
    if not isinstance(slstm_at, Iterable):
        raise ValueError(f'slstm_at must be a tuple of indices, or a ratio such as "7:1", got {slstm_at!r}')
    for index in slstm_at:
        if not isinstance(index, Integral) or isinstance(index, bool):
            raise ValueError(f'slstm_at must hold integers, or be a ratio such as "7:1", got {slstm_at!r}')
    outside = [index for index in slstm_at if not -num_blocks <= index < num_blocks]
    if outside:
        raise ValueError(f"slstm_at names blocks {outside}, but num_blocks is {num_blocks}")
    return tuple(slstm_at)


def _ratio_indices(ratio: str, num_blocks: int) -> tuple[int, ...]:
    """xLSTM[a:b] of the paper's section 4: of each a + b blocks the last b."""
    match = re.fullmatch(r"(\d+):(\d+)", ratio)
    a, b = (int(part) for part in match.groups()) if match else (0, 0)
    if a + b == 0:
        raise ValueError(f'slstm_at as a ratio must read "a:b", a mLSTM to b sLSTM blocks, got {ratio!r}')
    if num_blocks % (a + b):
        raise ValueError(
            f'slstm_at="{ratio}" needs num_blocks to be a multiple of {a + b}, got {num_blocks}; or name the indices'
        )
    return tuple(index for index in range(num_blocks) if index % (a + b) >= a)
