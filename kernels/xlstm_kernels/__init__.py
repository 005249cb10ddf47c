"""xLSTM in PyTorch: exact recurrences with carried state and resets, residual blocks and stacks."""

from .blocks import mLSTMBlock, sLSTMBlock
from .cells import mLSTMCell, sLSTMCell
from .ops import backends
from .ops.lstm import lstm
from .ops.mlstm import mlstm
from .ops.slstm import slstm
from .stack import xLSTMBlockStack, xLSTMConfig
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

__all__ = [
    "BlockState",
    "LSTMState",
    "StackState",
    "backends",
    "concat_states",
    "detach_state",
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
    "sLSTMBlock",
    "sLSTMCell",
    "sLSTMState",
    "select_state",
    "slstm",
    "unpack_state",
    "where_state",
    "xLSTMBlockStack",
    "xLSTMConfig",
]
