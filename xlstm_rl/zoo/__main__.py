"""RL Zoo's training with ``xLSTMPPO`` and the hyper-parameters of this package; the options are RL Zoo's own.

python -m xlstm_rl.zoo --env CartPoleNoVel-v1 --seed 0
"""

import sys

from xlstm_rl.zoo import HYPERPARAMETERS, register
from xlstm_rl.zoo.registration import NAME


def main() -> None:
    """Add the algorithm, its hyper-parameters and our environments to the command line, and hand over."""
    register()
    from rl_zoo3.train import train

    given = sys.argv[1:]
    sys.argv[1:] = ["--algo", NAME, "--conf-file", str(HYPERPARAMETERS), "--gym-packages", "xlstm_rl", *given]
    train()


if __name__ == "__main__":
    main()
