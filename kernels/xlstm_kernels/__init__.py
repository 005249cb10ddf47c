"""xLSTM in PyTorch: exact recurrences with carried state and resets, residual blocks and stacks."""

from .bidirectional import xLSTMBidirectional
from .blocks import TIREX, mLSTMBlock, sLSTMBlock, xLSTM7BBlock
from .cells import mLSTMCell, sLSTMCell
from .config import xLSTMConfig
from .converters import from_xlstm, from_xlstm_large, state_from_xlstm, state_from_xlstm_large
from .fused import TanhStepper, tanh_mlps
from .ops import backends
from .ops.lstm import lstm
from .ops.mlstm import mlstm
from .ops.slstm import slstm
from .parameters import parameter_groups
from .stack import xLSTMBlockStack
from .state import (
    BlockState,
    LSTMState,
    StackState,
    concat_states,
    detach_state,
    initial_lstm_state,
    initial_mlstm_state,
    initial_slstm_state,
    map_state,
    mLSTMState,
    move_state,
    pack_state,
    select_state,
    sLSTMState,
    unpack_state,
    where_state,
)
from .step import StackStepper

__all__ = [
    "TIREX",
    "BlockState",
    "LSTMState",
    "StackState",
    "StackStepper",
    "TanhStepper",
    "backends",
    "concat_states",
    "detach_state",
    "from_xlstm",
    "from_xlstm_large",
    "initial_lstm_state",
    "initial_mlstm_state",
    "initial_slstm_state",
    "lstm",
    "mLSTMBlock",
    "mLSTMCell",
    "mLSTMState",
    "map_state",
    "mlstm",
    "move_state",
    "pack_state",
    "parameter_groups",
    "sLSTMBlock",
    "sLSTMCell",
    "sLSTMState",
    "select_state",
    "slstm",
    "state_from_xlstm",
    "state_from_xlstm_large",
    "tanh_mlps",
    "unpack_state",
    "where_state",
    "xLSTM7BBlock",
    "xLSTMBidirectional",
    "xLSTMBlockStack",
    "xLSTMConfig",
]
