"""The mLSTM's kernels in Triton, forwards and backwards; which of them run is the plan's choice."""

from .backward import mlstm_backward_chunks, mlstm_backward_gates
from .backward_states import mlstm_backward_states
from .forward import mlstm_forward
from .forward_apart import mlstm_outputs, mlstm_states
from .gates import mlstm_gates
from .roles import mlstm_backward_roles

__all__ = [
    "mlstm_backward_chunks",
    "mlstm_backward_gates",
    "mlstm_backward_roles",
    "mlstm_backward_states",
    "mlstm_forward",
    "mlstm_gates",
    "mlstm_outputs",
    "mlstm_states",
]
