"""Cutting a rollout into sequences and minibatches."""

import pytest

from xlstm_rl.sequences import plan_sequences


@pytest.mark.parametrize(
    ("n_envs", "seq_len", "batch_size", "expected"),
    [
        (8, None, 256, (128, 2, 8)),
        (8, 32, 256, (32, 8, 32)),
        (8, 128, 1024, (128, 8, 8)),
        (1, 1, 64, (1, 64, 128)),
    ],
)
def test_a_minibatch_holds_whole_sequences(n_envs, seq_len, batch_size, expected):
    assert plan_sequences(128, n_envs, seq_len=seq_len, batch_size=batch_size) == expected


@pytest.mark.parametrize(("n_envs", "minibatches"), [(8, 4), (6, 3), (2, 2)])
def test_without_sizes_there_are_up_to_four_minibatches_of_whole_rows(n_envs, minibatches):
    plan = plan_sequences(128, n_envs, seq_len=None, batch_size=None)
    assert (plan.seq_len, plan.total) == (128, minibatches * plan.per_batch)


@pytest.mark.parametrize(("n_envs", "seq_len"), [(1, 32), (7, 32)])
def test_rows_that_make_one_minibatch_are_cut_into_four(n_envs, seq_len):
    plan = plan_sequences(128, n_envs, seq_len=None, batch_size=None)
    assert (plan.seq_len, plan.total) == (seq_len, 4 * plan.per_batch)


@pytest.mark.parametrize(("batch_size", "seq_len", "per_batch"), [(256, 128, 2), (32, 32, 1), (96, 32, 3), (63, 1, 63)])
def test_a_batch_size_without_a_sequence_length_takes_the_longest_that_fit(batch_size, seq_len, per_batch):
    assert plan_sequences(128, 3, seq_len=None, batch_size=batch_size)[:2] == (seq_len, per_batch)


def test_a_batch_larger_than_the_rollout_holds_all_of_it():
    assert plan_sequences(128, 2, seq_len=None, batch_size=1024) == (128, 2, 2)


def test_without_a_batch_size_no_minibatch_is_a_single_step():
    assert plan_sequences(1, 4, seq_len=None, batch_size=None) == (1, 2, 4)


@pytest.mark.parametrize(
    ("seq_len", "batch_size", "message"),
    [
        (48, None, r"seq_len must divide n_steps=128, got 48; use one of \[1, 2, 4, 8, 16, 32, 64, 128\]"),
        (0, None, "got 0"),
        (256, None, "got 256"),
        (128, 64, r"batch_size .* got 64; use one of \[128, 256, 512, 1024\]"),
        (32, 100, "got 100"),
        (32, 96, "got 96"),
        (32, 0, "got 0"),
        (32, 2048, "got 2048"),
    ],
)
def test_sizes_that_do_not_divide_raise_with_those_that_would(seq_len, batch_size, message):
    with pytest.raises(ValueError, match=message):
        plan_sequences(128, 8, seq_len=seq_len, batch_size=batch_size)


def test_a_rollout_needs_at_least_one_step():
    with pytest.raises(ValueError, match="n_steps must be >= 1, got 0"):
        plan_sequences(0, 8, seq_len=None, batch_size=None)
