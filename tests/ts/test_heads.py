"""The quantile head mixes what is available and never lets quantiles cross."""

import torch

from xlstm_ts.heads import QuantileHead, ascending


def test_ascending_never_crosses_even_for_extreme_outputs() -> None:
    raw = 1000 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))

    assert (ascending(raw).diff() >= 0).all()


def test_ascending_keeps_the_middle_output_as_the_median() -> None:
    raw = torch.tensor([3.0, -7.0, 5.0])

    assert ascending(raw)[1] == -7.0


def test_candidates_that_are_not_available_have_no_influence() -> None:
    torch.manual_seed(0)
    head = QuantileHead(8, 3, favoured=[True, True], num_quantiles=3, step_dim=2, decoder_dim=4)
    hidden, available = torch.randn(1, 1, 8), torch.tensor([True, False]).expand(1, 1, 3, 2)
    low = torch.tensor([1.0, 0.0]).expand(1, 1, 3, 2)

    with torch.no_grad():
        head.inputs.weight[:, 2:4] = 0  # what is left of the candidates is the mixture
        high = torch.tensor([1.0, 50.0]).expand(1, 1, 3, 2)
        torch.testing.assert_close(head(hidden, low, available), head(hidden, high, available))


def test_steps_ahead_are_told_apart() -> None:
    torch.manual_seed(0)
    head = QuantileHead(8, 3, favoured=[True], num_quantiles=3, step_dim=2, decoder_dim=4)

    quantiles = head(torch.randn(1, 1, 8), torch.zeros(1, 1, 3, 1), torch.ones(1, 1, 3, 1, dtype=torch.bool))

    assert not torch.allclose(quantiles[:, :, 0], quantiles[:, :, 1])


def test_an_untrained_head_prefers_the_favoured_candidates() -> None:
    torch.manual_seed(0)
    head = QuantileHead(8, 3, favoured=[False, True], num_quantiles=3, step_dim=2, decoder_dim=4)
    candidates = torch.tensor([0.0, 10.0]).expand(1, 1, 3, 2)

    median = head(torch.randn(1, 1, 8), candidates, torch.ones(1, 1, 3, 2, dtype=torch.bool))[..., 1]

    assert (median > 5).all()
