"""Location and scale come from the trailing values that were seen, and nothing else."""

import pytest
import torch

from xlstm_ts.scaling import FURTHEST, Prior, causal_scale, typical_series


def history(values: list[float], seen: list[bool] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    known = [True] * len(values) if seen is None else seen
    return torch.tensor([[values]], dtype=torch.float64), torch.tensor([[known]])


def test_only_the_trailing_span_counts() -> None:
    scale = causal_scale(*history([1000.0, 2.0, 4.0]), span=2)

    assert (scale.loc.item(), scale.scale.item()) == (3.0, 1.0)


def test_padding_does_not_count() -> None:
    scale = causal_scale(*history([1000.0, 2.0, 4.0], [False, True, True]), span=3)

    assert (scale.loc.item(), scale.scale.item()) == (3.0, 1.0)


def test_restoring_undoes_normalising() -> None:
    values, seen = history([5.0, 2.0, 4.0])
    scale = causal_scale(values, seen, span=3)

    torch.testing.assert_close(scale.restore(scale.normalise(values)), values, rtol=1e-6, atol=1e-6)


def test_small_movements_on_a_high_level_keep_their_precision() -> None:
    values, seen = history([1e9 + 1, 1e9 + 2, 1e9 + 3])

    normalised = causal_scale(values, seen, span=3).normalise(values)

    torch.testing.assert_close(normalised[0, 0], torch.tensor([-1.5, 0.0, 1.5]).sign() * 1.5**0.5)


def test_constant_and_empty_histories_have_a_positive_finite_scale() -> None:
    for values, seen in (history([7.0, 7.0]), history([0.0, 0.0]), history([3.0, 3.0], [False, False])):
        scale = causal_scale(values, seen, span=2).scale.item()
        assert 0 < scale < 1e-3


def test_a_jump_out_of_a_flat_history_is_limited() -> None:
    scale = causal_scale(*history([7.0, 7.0]), span=2)

    assert scale.normalise(torch.tensor([[[100.0]]])).item() == FURTHEST


def prior_of(*series: list[float]) -> Prior:
    values = [torch.tensor(row, dtype=torch.float64) for row in series]
    return typical_series(torch.stack([v.mean() for v in values]), torch.stack([v.std(correction=0) for v in values]))


AROUND_ZERO = prior_of([-3.0, 3.0], [-4.0, 4.0], [-5.0, 5.0])
OF_MANY_SIZES = prior_of([9.0, 11.0], [90.0, 110.0], [900.0, 1100.0])


def test_without_values_the_typical_series_is_assumed() -> None:
    empty = history([0.0, 0.0], [False, False])

    assert [*causal_scale(*empty, span=2, prior=AROUND_ZERO)] == [0, 4]
    assert [*causal_scale(*empty, span=2, prior=OF_MANY_SIZES)] == [100, 10]


def test_a_single_value_moves_by_a_typical_share_of_its_level() -> None:
    scale = causal_scale(*history([0.0, 50.0], [False, True]), span=2, prior=OF_MANY_SIZES)

    assert [*scale] == [50, 5]


def test_a_single_value_near_zero_moves_like_the_calmest_series() -> None:
    scale = causal_scale(*history([0.0, 0.01], [False, True]), span=2, prior=AROUND_ZERO)

    assert scale.scale.item() == 3


def test_where_the_span_is_flat_or_missing_the_whole_look_back_tells() -> None:
    values = [4.0, 0, 0, 0]

    assert [*causal_scale(*history(values), span=3)] == [0, pytest.approx(3**0.5)]
    assert [*causal_scale(*history(values, [True, True, False, False]), span=2)] == [2, 2]
    assert [*causal_scale(*history(values, [True, True, False, False]), span=3)] == [0, 2]


def test_series_that_never_move_stay_where_they_are() -> None:
    scale = causal_scale(*history([7.0, 7.0]), span=2, prior=prior_of([7.0, 7.0], [0.0, 0.0]))

    assert 0 < scale.scale.item() < 1e-6
