"""Environments that need memory, and a wrapper that tells the time; importing this package registers them by name."""

from xlstm_rl.envs.clock import EpisodeClock
from xlstm_rl.envs.tmaze import TMaze
from xlstm_rl.envs.velocity import MaskVelocity

__all__ = ["EpisodeClock", "MaskVelocity", "TMaze"]
