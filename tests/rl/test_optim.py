"""The policy's Adam beside torch's."""

import copy

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from xlstm_rl.optim import ClippedAdam

STEPS = 6


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (), (5,))]


def set_gradients(given, step, without=()):
    generator = torch.Generator().manual_seed(step)
    for at, parameter in enumerate(given):
        gradient = torch.randn(parameter.shape, generator=generator) * (1.0 if step % 2 else 0.01)  # clipped, or not
        parameter.grad = None if at in without else gradient


def torchs_step(given, optimizer, max_norm):
    clip_grad_norm_(given, max_norm)
    optimizer.step()


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1, "betas": (0.8, 0.9)}, {"amsgrad": True}, {"fused": False}]
)
@pytest.mark.parametrize("without", [(), (1,)], ids=["all gradients", "one missing"])
def test_steps_are_torchs_after_clipping(options, without):
    ours, theirs = parameters(), parameters()
    adam, reference = ClippedAdam(ours, lr=0.1, **options), torch.optim.Adam(theirs, lr=0.1, **options)
    for step in range(STEPS):
        for given in (ours, theirs):
            set_gradients(given, step, without if step == 3 else ())
        adam.step_clipped(0.5)
        torchs_step(theirs, reference, 0.5)
        adam.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = 0.1 / (step + 1)  # a schedule
        assert_same(ours, theirs)


@pytest.mark.parametrize("into", [ClippedAdam, torch.optim.Adam])
def test_a_saved_state_goes_on_in_either(into):
    ours = parameters()
    adam = ClippedAdam(ours, lr=0.1)
    for step in range(STEPS):
        set_gradients(ours, step)
        adam.step_clipped(0.5)
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    other = into(theirs, lr=0.1)
    other.load_state_dict(copy.deepcopy(adam.state_dict()))
    for step in range(STEPS):
        for given in (ours, theirs):
            set_gradients(given, step)
        adam.step_clipped(0.5)
        other.step_clipped(0.5) if into is ClippedAdam else torchs_step(theirs, other, 0.5)
    assert_same(ours, theirs)
    assert [state["step"].item() for state in other.state.values()] == [2 * STEPS] * 3


def test_a_state_loaded_between_two_steps_counts():
    ours = parameters()
    adam = ClippedAdam(ours, lr=0.1)
    set_gradients(ours, 0)
    adam.step_clipped(0.5)
    before, values = copy.deepcopy(adam.state_dict()), [parameter.detach().clone() for parameter in ours]
    results = []
    for _ in range(2):
        with torch.no_grad():
            for parameter, value in zip(ours, values, strict=True):
                parameter.copy_(value)
        adam.load_state_dict(copy.deepcopy(before))
        for step in (1, 2):
            set_gradients(ours, step)
            adam.step_clipped(0.5)
        results.append([parameter.detach().clone() for parameter in ours])
    assert_same(*results)
