"""RL Zoo, told of our algorithm."""

from xlstm_rl.ppo import xLSTMPPO

NAME = "xlstm_ppo"


def register() -> None:
    """Make ``--algo xlstm_ppo`` known to RL Zoo; ``python -m xlstm_rl.zoo`` does it for its command line.

    Raises:
        ImportError: RL Zoo is not installed.
    """
    try:
        from rl_zoo3 import ALGOS
    except ImportError as error:
        raise ImportError("RL Zoo is not installed: pip install rl_zoo3") from error
    ALGOS[NAME] = xLSTMPPO
