"""The decoder mixes what is available, tells steps apart, and starts from the favoured candidates."""

import torch

from xlstm_ts.decoder import Decoder

HISTORY, NONE = torch.zeros(1, 1, 5), torch.zeros(1, 1, 3, 0)


def decoder_of(favoured: list[bool], linear_lookback: int = 0) -> Decoder:
    torch.manual_seed(0)
    sizes = {"step_dim": 2, "decoder_dim": 4, "num_covariates": 0, "linear_lookback": linear_lookback}
    return Decoder(8, 3, favoured=favoured, num_outputs=3, **sizes)


def test_candidates_that_are_not_available_have_no_influence() -> None:
    decoder = decoder_of([True, True])
    hidden, available = torch.randn(1, 1, 8), torch.tensor([True, False]).expand(1, 1, 3, 2)
    low = torch.tensor([1.0, 0.0]).expand(1, 1, 3, 2)

    with torch.no_grad():
        decoder.inputs.weight[:, 2:4] = 0  # what is left of the candidates is the mixture
        high = torch.tensor([1.0, 50.0]).expand(1, 1, 3, 2)
        one, other = (decoder(hidden, HISTORY, values, available, NONE) for values in (low, high))
        torch.testing.assert_close(one, other)


def test_steps_ahead_are_told_apart() -> None:
    available = torch.ones(1, 1, 3, 1, dtype=torch.bool)

    _, raw = decoder_of([True])(torch.randn(1, 1, 8), HISTORY, torch.zeros(1, 1, 3, 1), available, NONE)

    assert not torch.allclose(raw[:, :, 0], raw[:, :, 1])


def test_an_untrained_decoder_prefers_the_favoured_candidates() -> None:
    candidates, available = torch.tensor([0.0, 10.0]).expand(1, 1, 3, 2), torch.ones(1, 1, 3, 2, dtype=torch.bool)

    base, _ = decoder_of([False, True])(torch.randn(1, 1, 8), HISTORY, candidates, available, NONE)

    assert (base > 5).all()


def test_a_linear_map_adds_what_it_reads_from_the_look_back() -> None:
    decoder = decoder_of([True], linear_lookback=2)
    candidates, available = torch.zeros(1, 1, 3, 1), torch.ones(1, 1, 3, 1, dtype=torch.bool)
    history = torch.tensor([[[9.0, 9.0, 9.0, 1.0, 2.0]]])

    before, _ = decoder(torch.zeros(1, 1, 8), history, candidates, available, NONE)
    with torch.no_grad():
        decoder.linear.weight.fill_(0.5)
    after, _ = decoder(torch.zeros(1, 1, 8), history, candidates, available, NONE)

    torch.testing.assert_close(after - before, torch.full((1, 1, 3, 1), 1.5))
