"""The decoder mixes what is available, tells steps apart, and starts from the candidates preferred."""

import torch

from xlstm_ts.decoder import Decoder

NONE = torch.zeros(1, 1, 3, 0)


def decoder_of(*preferences: float) -> Decoder:
    torch.manual_seed(0)
    return Decoder(8, 3, preferences=preferences, num_outputs=3, step_dim=2, decoder_dim=4, num_covariates=0)


def test_candidates_that_are_not_available_have_no_influence() -> None:
    decoder = decoder_of(0.0, 0.0)
    hidden, available = torch.randn(1, 1, 8), torch.tensor([True, False]).expand(1, 1, 3, 2)
    low = torch.tensor([1.0, 0.0]).expand(1, 1, 3, 2)

    with torch.no_grad():
        decoder.inputs.weight[:, 2:4] = 0  # what is left of the candidates is the mixture
        high = torch.tensor([1.0, 50.0]).expand(1, 1, 3, 2)
        one, other = (decoder(hidden, values, available, NONE) for values in (low, high))
        torch.testing.assert_close(one, other)


def test_steps_ahead_are_told_apart() -> None:
    available = torch.ones(1, 1, 3, 1, dtype=torch.bool)

    _, raw = decoder_of(0.0)(torch.randn(1, 1, 8), torch.zeros(1, 1, 3, 1), available, NONE)

    assert not torch.allclose(raw[:, :, 0], raw[:, :, 1])


def test_an_untrained_decoder_mixes_candidates_by_their_preferences() -> None:
    candidates, available = torch.tensor([0.0, 10.0]).expand(1, 1, 3, 2), torch.ones(1, 1, 3, 2, dtype=torch.bool)

    base, _ = decoder_of(-2.0, 0.0)(torch.randn(1, 1, 8), candidates, available, NONE)

    assert (base > 5).all()


def test_a_decoder_that_begins_anew_answers_every_state_alike() -> None:
    decoder, candidates = decoder_of(0.0, 0.0), torch.tensor([0.0, 10.0]).expand(1, 2, 3, 2)
    available = torch.ones(1, 2, 3, 2, dtype=torch.bool)

    decoder.begin(torch.tensor([0.0, 1.0]).log(), torch.tensor([1.0, 2.0, 3.0]))

    base, raw = decoder(torch.randn(1, 2, 8), candidates, available, torch.zeros(1, 2, 3, 0))
    torch.testing.assert_close(base, torch.full((1, 2, 3, 1), 10.0))
    torch.testing.assert_close(raw, torch.tensor([1.0, 2.0, 3.0]).expand(1, 2, 3, 3))
