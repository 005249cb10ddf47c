"""How actor and critic share a memory.

Shapes: B batch, S sequence, F features, D memory output, N floats of packed state.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch as th
from torch import Tensor, nn

from xlstm_rl.config import MemoryConfig
from xlstm_rl.memory import Memory, build_memory


class Recollection(NamedTuple):
    """What the networks of actor and critic read, each (B, S, ...), and the state (B, N) after it."""

    pi: Tensor
    vf: Tensor
    state: Tensor


class ActorCriticMemory(nn.Module):
    """The actor's memory, and the critic's: the same one, one of its own, or a linear map that remembers nothing.

    Args:
        features_dim: F.
        config: cell and critic.
    """

    critic: nn.Module | None

    def __init__(self, features_dim: int, config: MemoryConfig) -> None:
        super().__init__()
        self.skip, self.detached = config.skip, config.critic == "detached"
        self.actor = build_memory(features_dim, config)
        self.critic = None
        if config.critic == "separate":
            self.critic = build_memory(features_dim, config)
        elif config.critic == "none":
            self.critic = nn.Linear(features_dim, config.embedding_dim)
        self.output_dim = config.embedding_dim + (features_dim if config.skip else 0)
        self._sizes = [memory.initial_state(1).shape[1] for memory in self._memories()]

    def forward(
        self, pi_features: Tensor, vf_features: Tensor, state: Tensor, resets: Tensor | None = None
    ) -> Recollection:
        """Read features (B, S, F) of actor and critic on from ``state`` (B, N), with ``resets`` (B, S)."""
        states = state.split(self._sizes, dim=1)
        pi, after = self.actor(pi_features, states[0], resets)
        if isinstance(self.critic, Memory):
            vf, critic_after = self.critic(vf_features, states[1], resets)
            after = th.cat([after, critic_after], dim=1)
        elif self.critic is not None:
            vf = self.critic(vf_features)
        else:
            vf = pi.detach() if self.detached else pi
        if not self.skip:
            return Recollection(pi, vf, after)
        joined = th.cat([pi_features, pi], dim=2)
        same = vf is pi and vf_features is pi_features
        return Recollection(joined, joined if same else th.cat([vf_features, vf], dim=2), after)

    def initial_state(self, batch_size: int) -> Tensor:
        """The memory (B, N) of ``batch_size`` rows that have read nothing."""
        return th.cat([memory.initial_state(batch_size) for memory in self._memories()], dim=1)

    @property
    def state_size(self) -> int:
        """N."""
        return sum(self._sizes)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Within it, single steps without gradients read a snapshot of the weights: for rollouts."""
        with ExitStack() as snapshots:
            for memory in self._memories():
                snapshots.enter_context(memory.stepping())
            yield

    def _memories(self) -> list[Memory]:
        return [memory for memory in (self.actor, self.critic) if isinstance(memory, Memory)]
