"""The epochs of one update: minibatches of sequences through the policy, losses, steps of the optimiser, the log."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from stable_baselines3.common.utils import explained_variance
from torch.nn.utils import clip_grad_norm_

from xlstm_rl.losses import Coefficients, Terms, join, ppo_terms
from xlstm_rl.optim import ClippedAdam
from xlstm_rl.replay import evaluate, recompute_log_probs, refresh_states

if TYPE_CHECKING:
    from xlstm_rl.ppo import xLSTMPPO


def train_epochs(model: "xLSTMPPO") -> None:
    """Update the policy on the rollout in the model's buffer, and log what happened.

    Nothing waits for the device inside: the log is read at the end. A ``target_kl`` has to be read at every step.

    Raises:
        ValueError: the rollout holds what is not finite; nothing has been learnt from it then.
    """
    policy, buffer = model.policy, model.rollout_buffer
    _check_finite(buffer.returns)
    policy.set_training_mode(True)
    model._update_learning_rate(policy.optimizer)
    policy.observe_returns(th.as_tensor(buffer.returns, device=model.device))
    if model.recompute_log_prob:
        recompute_log_probs(policy, buffer, model.batch_size)
    weights = _coefficients(model)
    history: list[list[Terms]] = []  # of each epoch's minibatches
    for epoch in range(model.n_epochs):
        if epoch > 0 and model.state_refresh:
            refresh_states(policy, buffer)
        history.append([])
        ended = _run_epoch(model, weights, history[-1])
        model._n_updates += 1
        if ended:
            break
    # Only now: the rollout's log-probabilities belong to the scales it was collected with.
    policy.observe_features(buffer.flat_observations((slice(None), slice(None))))
    _log(model, weights, history)


def _check_finite(returns: np.ndarray) -> None:
    """Raise ValueError unless all ``returns`` (T, E) are finite: rewards and values are in them."""
    finite = np.isfinite(returns)
    if not finite.all():
        step, env = (int(at) for at in np.argwhere(~finite)[-1])
        raise ValueError(
            f"the return of environment {env} at step {step} of the rollout is {returns[step, env]}: an observation, "
            "a reward or the policy's weights are not finite; wrap the environments in VecCheckNan(env, "
            "raise_exception=True) to find out, and where they are well use a smaller learning_rate"
        )


def _coefficients(model: "xLSTMPPO") -> Coefficients:
    progress = model._current_progress_remaining
    return Coefficients(
        clip_range=model.clip_range(progress),  # type: ignore[operator]
        clip_range_vf=None if model.clip_range_vf is None else model.clip_range_vf(progress),  # type: ignore[operator]
        entropy=model.ent_coef,
        # The value loss is in units of the rewards; the actor, which shares the memory, must not drown in it.
        value=model.vf_coef / model.policy.return_scale.deviation.item() ** 2,
        normalize_advantage=model.normalize_advantage,
    )


def _run_epoch(model: "xLSTMPPO", weights: Coefficients, history: list[Terms]) -> bool:
    """One pass over the rollout; True where the policy moved so far that the update should end."""
    policy = model.policy
    parameters = list(policy.parameters())
    for samples in model.rollout_buffer.get(model.batch_size):
        outputs = evaluate(policy, samples)
        terms, gradients = ppo_terms(samples, *outputs, weights)
        history.append(terms)
        if model.target_kl is not None and terms.divergence().mean().item() > 1.5 * model.target_kl:
            return True
        for parameter in parameters:
            parameter.grad = None
        back_propagate(outputs, gradients)
        if isinstance(policy.optimizer, ClippedAdam):
            policy.optimizer.step_clipped(model.max_grad_norm)
        else:
            clip_grad_norm_(parameters, model.max_grad_norm, foreach=True)
            policy.optimizer.step()
    return False


def back_propagate(outputs: Sequence[th.Tensor | None], gradients: Sequence[th.Tensor | None]) -> None:
    """Go on from the ``gradients`` of the ``outputs``, where there are both."""
    pairs = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if output is not None and gradient is not None and output.requires_grad
    ]
    th.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def _log(model: "xLSTMPPO", weights: Coefficients, history: list[list[Terms]]) -> None:
    record, buffer = model.logger.record, model.rollout_buffer
    steps, shares = join([terms for epoch in history for terms in epoch])
    record("train/entropy_loss", -(steps.entropy @ shares).item())
    record("train/policy_gradient_loss", -(steps.gain @ shares).item())
    record("train/value_loss", (steps.error.square() @ shares).item())
    record("train/clip_fraction", (steps.clipped(weights.clip_range) @ shares).item())
    record("train/loss", history[-1][-1].loss(weights).item())
    steps, shares = join(history[-1])  # where the update has ended, as in SB3
    record("train/approx_kl", (steps.divergence() @ shares).item())
    record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
    record("train/replay_gap", history[0][0].log_ratio.expm1().abs().max().item())
    record("train/state_norm", _state_norm(model._last_state))
    if hasattr(model.policy, "log_std"):
        record("train/std", model.policy.log_std.exp().mean().item())
    record("train/n_updates", model._n_updates, exclude="tensorboard")
    record("train/clip_range", weights.clip_range)
    if weights.clip_range_vf is not None:
        record("train/clip_range_vf", weights.clip_range_vf)


def _state_norm(state: th.Tensor | None) -> float:
    """Root mean square of a memory's numbers; those of an empty one that are infinite do not count."""
    assert state is not None
    return state[state.isfinite()].square().mean().sqrt().item()
