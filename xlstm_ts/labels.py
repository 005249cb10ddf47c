"""How messages show the labels of series and rows."""

from typing import Any

import numpy as np


def shown(label: Any) -> str:
    """A series' name or a row's label as its user wrote it: 'a' and 7, not np.int64(7)."""
    return repr(label.item() if isinstance(label, np.generic) else label)
