"""Reinforcement learning with xLSTM memory: Stable-Baselines3's PPO and its policies, with a state that they carry."""

try:
    from xlstm_rl.buffers import DictSequenceRolloutBuffer, SequenceRolloutBuffer
    from xlstm_rl.envs import AgentView, EpisodeClock, MaskVelocity, TMaze
    from xlstm_rl.numpy_actor import NumpyActor
    from xlstm_rl.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
    from xlstm_rl.ppo import xLSTMPPO
    from xlstm_rl.previous import PreviousInputs
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f'{error}: pip install "xlstm-toolkit[rl]" brings it', name=error.name) from error

__all__ = [
    "AgentView",
    "CnnPolicy",
    "DictSequenceRolloutBuffer",
    "EpisodeClock",
    "MaskVelocity",
    "MlpPolicy",
    "MultiInputPolicy",
    "NumpyActor",
    "PreviousInputs",
    "SequenceRolloutBuffer",
    "TMaze",
    "xLSTMPPO",
]
