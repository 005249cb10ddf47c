"""The layers against plain formulas."""

import pytest
import torch
from torch.nn import functional as F

from xlstm_kernels.layers import CausalConv, HeadwiseLinear, MultiHeadNorm, steps_since_reset


def test_convolution_equals_a_padded_depthwise_convolution() -> None:
    conv, x = CausalConv(6, 4), torch.randn(2, 9, 6)
    y, _ = conv(x, torch.zeros(2, 3, 6))
    expected = F.conv1d(F.pad(x.mT, (3, 0)), conv.weight.t()[:, None], conv.bias, groups=6).mT
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("S", [1, 2, 7])
def test_convolution_taps_do_not_cross_a_reset(S: int) -> None:
    conv, x, window = CausalConv(6, 4), torch.randn(2, 3 + S, 6), torch.randn(2, 3, 6)
    resets = torch.zeros(2, 3 + S, dtype=torch.bool)
    resets[:, 3] = True
    y, after = conv(x, window, resets)
    y_fresh, after_fresh = conv(x[:, 3:], torch.zeros(2, 3, 6))
    torch.testing.assert_close(y[:, 3:], y_fresh)
    torch.testing.assert_close(after, after_fresh)
    torch.testing.assert_close(y[:, :3], conv(x[:, :3], window)[0])


def test_a_convolution_over_one_step_carries_no_window() -> None:
    conv, x = CausalConv(6, 1), torch.randn(2, 5, 6)
    y, after = conv(x, torch.zeros(2, 0, 6), torch.ones(2, 5, dtype=torch.bool))
    assert after.shape == (2, 0, 6)
    torch.testing.assert_close(y, x * conv.weight[0] + conv.bias)


@pytest.mark.parametrize("K", [1, 4, 6])
def test_the_window_after_a_padded_row_holds_its_own_last_inputs(K: int) -> None:
    conv, window, lengths = CausalConv(6, K), torch.randn(4, K - 1, 6), torch.tensor([5, 0, 3, 1])
    x, resets = torch.randn(4, 5, 6), torch.zeros(4, 5, dtype=torch.bool)
    resets[0, 3] = resets[1, 0] = resets[2, 4] = resets[3, 0] = True  # the second and the third lie in padding
    _, after = conv(x, window, resets, lengths)
    torch.testing.assert_close(after[1], window[1])
    for row, length in ((0, 5), (2, 3), (3, 1)):
        rows = slice(row, row + 1)
        torch.testing.assert_close(after[rows], conv(x[rows, :length], window[rows], resets[rows, :length])[1])


def test_steps_since_reset_counts_from_the_last_reset() -> None:
    resets = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    age = steps_since_reset(resets, 4)
    assert age[0, 1:].tolist() == [0, 1, 2, 0]
    assert (age[1] >= 4).all()
    assert age[0, 0] >= 4


def test_headwise_linear_is_block_diagonal() -> None:
    layer, x = HeadwiseLinear(12, 4, init_dim=12), torch.randn(2, 5, 12)
    torch.testing.assert_close(layer(x), x @ torch.block_diag(*layer.weight).t())


def test_multi_head_norm_normalises_each_head_alone() -> None:
    h = torch.randn(2, 5, 3, 8)
    y = MultiHeadNorm(24)(h)
    torch.testing.assert_close(y[..., 8:16], F.layer_norm(h[:, :, 1], (8,)))
