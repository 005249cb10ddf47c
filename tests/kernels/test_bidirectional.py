"""Two stacks in both directions against runs of each, segment by segment."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.kernels.stacks import D, double, perturb, small_config
from xlstm_kernels import xLSTMBidirectional

pytestmark = pytest.mark.filterwarnings("error")


def random_encoder(**options: str) -> xLSTMBidirectional:
    torch.manual_seed(0)
    return perturb(xLSTMBidirectional(small_config(slstm_at="1:1"), **options).double())


def run_segment(encoder: xLSTMBidirectional, x: Tensor) -> Tensor:
    """Both stacks on x (length, D) alone."""
    forward, _ = encoder.forward_stack(x[None])
    backward, _ = encoder.backward_stack(x.flip(0)[None])
    return torch.cat([forward[0], backward[0].flip(0)], dim=-1)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_each_segment_of_a_padded_row_is_read_in_both_directions_alone(padding: str) -> None:
    encoder, x = random_encoder(), double(3, 10, D)
    lengths, borders = torch.tensor([10, 7, 4]), [[3, 9], [0, 2], []]
    resets, expected = torch.zeros(3, 10, dtype=torch.bool), torch.zeros(3, 10, 2 * D, dtype=torch.float64)
    for row, (length, inner) in enumerate(zip(lengths.tolist(), borders, strict=True)):
        first = 10 - length if padding == "left" else 0
        edges = [0, *(border for border in inner if border), length]
        for start, stop in itertools.pairwise(edges):
            steps = slice(first + start, first + stop)
            expected[row, steps] = run_segment(encoder, x[row, steps])
        resets[row, [first + border for border in inner]] = True
        own = torch.zeros(10, dtype=torch.bool)
        own[first : first + length] = True
        resets[row, ~own], x[row, ~own] = True, torch.nan
    y = encoder(x, resets, lengths=lengths, padding=padding)
    torch.testing.assert_close(y, expected)


def test_whole_rows_need_no_lengths() -> None:
    encoder, x = random_encoder(), double(2, 6, D)
    torch.testing.assert_close(encoder(x), torch.stack([run_segment(encoder, row) for row in x]))


def test_the_two_directions_can_be_summed() -> None:
    encoder, x = random_encoder(merge="sum"), double(1, 6, D)
    assert encoder.output_dim == D
    torch.testing.assert_close(encoder(x)[0], sum(run_segment(encoder, x[0]).chunk(2, dim=-1)))


def test_the_first_output_knows_the_last_input() -> None:
    encoder, x = random_encoder(), double(1, 6, D).requires_grad_()
    (dx,) = torch.autograd.grad(encoder(x)[0, 0].sum(), x)
    assert dx[0, -1].any()


def test_an_unknown_merge_is_named() -> None:
    with pytest.raises(ValueError, match=r"merge must be one of \('concat', 'sum'\), got 'mean'"):
        random_encoder(merge="mean")


def test_padded_rows_in_both_directions_compile_to_one_graph() -> None:
    encoder, x, lengths = random_encoder(), double(3, 6, D), torch.tensor([6, 2, 0])
    torch.compiler.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    expected = encoder(x, lengths=lengths, padding="left")
    torch.testing.assert_close(compiled(x, lengths=lengths, padding="left"), expected)
