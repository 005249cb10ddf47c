"""Environments that need memory and wrappers that help one; importing this package registers them by name."""

from xlstm_rl.envs.clock import EpisodeClock
from xlstm_rl.envs.tmaze import TMaze
from xlstm_rl.envs.velocity import MaskVelocity
from xlstm_rl.envs.view import AgentView

__all__ = ["AgentView", "EpisodeClock", "MaskVelocity", "TMaze"]
