"""The residual blocks: pre-norm, a mixer with memory, an optional FFN.

Sources: Beck et al. 2024 (xLSTM, arXiv 2405.04517), figures 10 and 11; Beck et al. 2025 (xLSTM 7B, arXiv 2503.13427);
Auer et al. 2025 (TiRex, arXiv 2505.23719).
"""

from .base import check_input, is_plain, xLSTMBlock
from .mlstm import mLSTMBlock
from .slstm import TIREX, sLSTMBlock
from .xlstm_7b import xLSTM7BBlock

__all__ = ["TIREX", "check_input", "is_plain", "mLSTMBlock", "sLSTMBlock", "xLSTM7BBlock", "xLSTMBlock"]
