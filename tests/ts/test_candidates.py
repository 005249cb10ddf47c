"""Candidates continue the last value, earlier seasons, and seasons that drift."""

import torch

from xlstm_ts.candidates import Candidates
from xlstm_ts.tokens import tokenise

REACH, HORIZON, LAGS, SEASONS = 16, 6, ((4, 1), (4, 2), (8, 1)), (4, 8)


def candidates_of(values: torch.Tensor, seen: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates (H, K) of a single token, in units of the data, and which are available."""
    known = torch.ones_like(values, dtype=torch.bool) if seen is None else seen
    tokens = tokenise(values[None], known[None], reach=REACH, stride=4, span=REACH)
    candidates = Candidates(HORIZON, seasonal_lags=LAGS, season_lengths=SEASONS, reach=REACH)
    normalised, available = candidates(tokens)
    return tokens.scale.restore(normalised.flatten(2)).reshape(HORIZON, -1), available[0, 0]


def test_candidates_are_the_last_value_and_the_same_phase_of_earlier_seasons() -> None:
    values = torch.randn(REACH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    found, _ = candidates_of(values)

    now = REACH - 1
    expected = [
        [values[now], *(values[now + h - season * (-(-h // season) + back - 1)] for season, back in LAGS)]
        for h in range(1, HORIZON + 1)
    ]
    torch.testing.assert_close(found[:, :4], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_a_drifting_candidate_continues_a_season_on_a_straight_trend_exactly() -> None:
    season = torch.tensor([3.0, -1.0, 4.0, 0.0], dtype=torch.float64)
    steps = torch.arange(REACH + HORIZON, dtype=torch.float64)
    series = season.repeat(6)[: REACH + HORIZON] + 0.5 * steps

    found, _ = candidates_of(series[:REACH])

    for drifting in (4, 5):
        torch.testing.assert_close(found[:, drifting], series[REACH:], rtol=1e-5, atol=1e-4)


def test_candidates_before_a_series_begins_are_not_available() -> None:
    seen = torch.arange(REACH) >= REACH - 9

    _, available = candidates_of(torch.zeros(REACH, dtype=torch.float64), seen)

    assert available[0].tolist() == [True, True, True, True, True, False]


def test_a_linear_map_forecasts_from_its_look_back_once_it_is_solved_for() -> None:
    candidates = Candidates(HORIZON, seasonal_lags=LAGS, season_lengths=SEASONS, reach=REACH, linear_lookback=2)
    values = torch.arange(1.0, REACH + 1, dtype=torch.float64)[None]
    tokens = tokenise(values, torch.ones_like(values, dtype=torch.bool), reach=REACH, stride=4, span=REACH)

    _, before = candidates(tokens)
    candidates.linear_map[:] = torch.tensor([[-1.0], [2.0]])  # on a straight line: one step ahead
    found, after = candidates(tokens)

    assert not before[..., -1].any()
    assert after[..., -1].all()
    torch.testing.assert_close(tokens.scale.restore(found[..., -1]), torch.full((1, 1, HORIZON), REACH + 1.0).double())
    assert len(candidates.preferences) == found.shape[-1]
