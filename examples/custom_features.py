"""Read observations with a network of your own: SB3's features extractors work unchanged, in front of the memory.

Here the T-maze's four symbols become learned vectors. The sign at the corridor's start says where to turn at its end.

python examples/custom_features.py
"""

import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from xlstm_rl import TMaze, xLSTMPPO

STEPS = 60_000


class SymbolEmbedding(BaseFeaturesExtractor):
    """A vector for each symbol; SB3 hands over Discrete observations one-hot, (B, n) or (B, 1, n)."""

    def __init__(self, observation_space: spaces.Discrete, features_dim: int = 16) -> None:
        super().__init__(observation_space, features_dim)
        self.embedding = nn.Embedding(int(observation_space.n), features_dim)

    def forward(self, observations: Tensor) -> Tensor:
        return self.embedding(observations.flatten(1).argmax(dim=1))


def main() -> None:
    torch.set_num_threads(1)  # tensors this small are slower on more
    env = make_vec_env(TMaze, n_envs=16, seed=0, env_kwargs={"length": 10})
    extractor = {"features_extractor_class": SymbolEmbedding, "features_extractor_kwargs": {"features_dim": 16}}
    memory = {"scale": 1.0}  # begins loud, since nothing else tells the turn
    options = {"learning_rate": 1e-3, "ent_coef": 0.01, "seed": 0, "device": "cpu"}
    model = xLSTMPPO("MlpPolicy", env, policy_kwargs={**extractor, "memory": memory}, **options).learn(STEPS)
    reward, _ = evaluate_policy(model, env, n_eval_episodes=100)
    print(f"mean reward {reward:.2f}; 1 is the most, 0.5 is what walking without memory brings")


if __name__ == "__main__":
    main()
