"""Two stacks that read a sequence in both directions.

Shapes: B batch, S sequence, D embedding dim.
"""

import torch
from torch import Tensor, nn

from .blocks import check_input
from .checks import check_choice
from .config import xLSTMConfig
from .rows import PaddedRows
from .stack import xLSTMBlockStack

MERGES = ("concat", "sum")


class xLSTMBidirectional(nn.Module):
    """One stack reads each row forwards, another backwards; each output knows the whole row, or segment between resets.

    There is no state to carry: what follows a sequence would change all outputs before it. So it serves encoders of
    whole sequences, not stepping.

    Args:
        config: both stacks', which share no weights.
        merge: ``concat`` the two outputs to 2 D channels, or ``sum`` them.

    >>> encoder = xLSTMBidirectional(xLSTMConfig(embedding_dim=64, num_blocks=2))
    >>> y = encoder(x)  # (B, S, 64) to (B, S, 128)
    """

    def __init__(self, config: xLSTMConfig, *, merge: str = "concat") -> None:
        super().__init__()
        check_choice("merge", merge, MERGES)
        self.config, self.merge = config, merge
        self.forward_stack = xLSTMBlockStack(config)
        self.backward_stack = xLSTMBlockStack(config)

    @property
    def output_dim(self) -> int:
        """Channels of the outputs."""
        return self.config.embedding_dim * (2 if self.merge == "concat" else 1)

    def forward(
        self, x: Tensor, resets: Tensor | None = None, *, lengths: Tensor | None = None, padding: str = "right"
    ) -> Tensor:
        """Run both stacks over a sequence.

        Args:
            x: inputs (B, S, D).
            resets: bool (B, S); where true, nothing passes between the step before and this one, in either direction.
            lengths, padding: as in ``xLSTMBlockStack``; a row is read backwards from its own last step.

        Returns:
            Outputs (B, S, ``output_dim``).

        Raises:
            ValueError: shapes do not fit, or a length is out of range.
            TypeError: ``x`` is not of the weights' type.
        """
        check_input(x, self.forward_stack.norm)
        all_steps = torch.full((x.shape[0],), x.shape[1], device=x.device)
        rows = PaddedRows.of(x, all_steps if lengths is None else lengths, padding)
        x, resets = rows.enter(x), None if resets is None else rows.enter(resets)
        # Where rows are not padded the stacks need not know of lengths, and their ops run as they would without.
        ends = None if lengths is None else rows.lengths
        y_forward, _ = self.forward_stack(x, resets=resets, lengths=ends)
        mirrored = None if resets is None else mirror_resets(resets, rows)
        y_backward, _ = self.backward_stack(rows.reverse(x), resets=mirrored, lengths=ends)
        y_backward = rows.reverse(y_backward)
        if self.merge == "sum":
            return rows.leave(y_forward + y_backward)
        return rows.leave(torch.cat([y_forward, y_backward], dim=-1))


def mirror_resets(resets: Tensor, rows: PaddedRows) -> Tensor:
    """Resets (B, S) of entered rows for the same rows reversed: a border before t is, read backwards, before t - 1."""
    following = torch.cat([resets[:, 1:], torch.zeros_like(resets[:, :1])], dim=1)  # a border after step t
    return rows.reverse(following)
