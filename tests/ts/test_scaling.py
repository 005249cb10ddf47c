"""Location and scale come from the trailing values that were seen, and nothing else."""

import torch

from xlstm_ts.scaling import FURTHEST, causal_scale


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
