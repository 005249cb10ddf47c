"""Tokens slide over a window in patches and see their own past only."""

import torch

from xlstm_ts.tokens import feature_count, patch_features, starts_afresh, tokenise

REACH, PATCH = 6, 2


def tokens_of(values: torch.Tensor, seen: torch.Tensor | None = None):
    known = torch.ones_like(values, dtype=torch.bool) if seen is None else seen
    return tokenise(values, known, reach=REACH, stride=PATCH, span=4)


def test_the_last_token_ends_with_the_window() -> None:
    tokens = tokens_of(torch.arange(10.0, dtype=torch.float64)[None])

    assert tokens.history.shape == (1, 3, REACH)
    restored = tokens.scale.restore(tokens.history)
    torch.testing.assert_close(restored[0, -1], torch.arange(4.0, 10.0, dtype=torch.float64))


def test_features_hold_the_patch_and_its_change_over_a_season() -> None:
    values = torch.tensor([[0.0, 0.0, 1.0, 5.0, 2.0, 8.0]], dtype=torch.float64)
    tokens = tokens_of(values)

    features = patch_features(tokens, patch_length=PATCH, season_length=2)[0, 0]

    scale = tokens.scale.scale.item()
    assert features.shape == (feature_count(PATCH),)
    torch.testing.assert_close(features[:2], tokens.history[0, 0, -2:])
    torch.testing.assert_close(features[2:4], torch.tensor([1.0, 3.0]) / scale)


def test_features_do_not_change_with_the_units_of_the_data() -> None:
    values = torch.randn(1, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 5

    in_units = patch_features(tokens_of(values), patch_length=PATCH, season_length=2)
    in_thousandths = patch_features(tokens_of(1000 * values), patch_length=PATCH, season_length=2)

    torch.testing.assert_close(in_units, in_thousandths, rtol=1e-4, atol=1e-4)


def test_a_series_starts_afresh_while_it_sees_nothing_before_its_newest_patch() -> None:
    values = torch.zeros(1, 12, dtype=torch.float64)
    seen = torch.arange(12)[None] >= 7  # tokens end at 6, 8, 10 and 12: the second one holds the first value

    assert starts_afresh(tokens_of(values, seen), PATCH).tolist() == [[True, True, False, False]]


def test_a_gap_shorter_than_the_look_back_does_not_start_afresh() -> None:
    values = torch.zeros(1, 12, dtype=torch.float64)
    seen = torch.ones(1, 12, dtype=torch.bool)
    seen[:, 6:8] = False

    assert not starts_afresh(tokens_of(values, seen), PATCH).any()
