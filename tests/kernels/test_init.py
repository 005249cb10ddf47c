"""Initial values against the formulas of the paper's code."""

import math

import pytest
import torch

from xlstm_kernels.init import linspace_forget_bias, power_law_forget_bias, small_init_


def test_mlstm_forget_biases_run_from_3_to_6() -> None:
    assert linspace_forget_bias(4).tolist() == [3.0, 4.0, 5.0, 6.0]


def test_slstm_forget_biases_follow_the_power_law() -> None:
    bias = power_law_forget_bias(5, block_index=1, num_blocks=3)
    expected = [5 - 12 * (k / 4) ** (0.3 + 1.3 * 0.5) for k in range(5)]
    torch.testing.assert_close(bias, torch.tensor(expected))


@pytest.mark.parametrize(("head_dim", "num_blocks"), [(1, 1), (1, 3), (4, 1)])
def test_slstm_forget_biases_are_finite_for_one_unit_and_one_block(head_dim: int, num_blocks: int) -> None:
    assert power_law_forget_bias(head_dim, block_index=0, num_blocks=num_blocks).isfinite().all()


def test_small_init_has_the_variance_of_its_formula() -> None:
    torch.manual_seed(0)
    assert small_init_(torch.empty(500, 500), 64).std().item() == pytest.approx(math.sqrt(2 / (5 * 64)), rel=0.01)
