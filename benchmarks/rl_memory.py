"""What policies with memory learn where memory matters, beside PPO without one, with stacked frames, and RecurrentPPO.

pip install popgym minigrid sb3-contrib
python benchmarks/rl_memory.py --jobs 8                                  # everything: about a day of one core
python benchmarks/rl_memory.py --environments TMaze50-v0 --seeds 0 1 2   # a part
python benchmarks/rl_memory.py --minutes 60 --checkpoints rl_memory      # an hour of it; again: the next
python benchmarks/rl_memory.py --report                                  # table and picture of what has been run

Each (environment, algorithm, seed) trains in one process of one thread, and appends to the CSV as it goes: a run that
is interrupted continues with what is not finished, and with checkpoints also within a cell.
"""

import argparse
import itertools
import multiprocessing
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rl_memory_cells import ALGORITHMS, Cell, Plan, train_cell
from rl_memory_report import draw, finished_cells, print_table, read

ENVIRONMENTS = (
    "CartPoleNoVel-v1",
    "PendulumNoVel-v1",
    "MountainCarContinuousNoVel-v0",
    "popgym-RepeatPreviousEasy-v0",
    "popgym-RepeatFirstEasy-v0",
    "popgym-AutoencodeEasy-v0",
    "popgym-RepeatPreviousMedium-v0",
    "TMaze50-v0",
    "TMaze200-v0",
    "MiniGrid-MemoryS9-v0",
)

GRACE = 15.0  # seconds after the end in which processes finish their rollout and save


def main() -> None:
    arguments = parse_arguments()
    if not arguments.report:
        run(arguments)
    results = read(arguments.csv)
    print_table(results)
    draw(results, arguments.picture)
    print(f"learning curves: {arguments.picture}")


def run(arguments: argparse.Namespace) -> None:
    wanted = itertools.product(arguments.seeds, arguments.environments, arguments.algorithms)
    cells = [Cell(environment, algorithm, seed) for seed, environment, algorithm in wanted]
    minutes = float("inf") if arguments.minutes is None else arguments.minutes
    plan = Plan(arguments.csv, arguments.steps, arguments.checkpoints, time.time() + 60 * minutes)
    train_cells(cells, plan, arguments.jobs)


def train_cells(cells: Iterable[Cell], plan: Plan, jobs: int) -> None:
    """Train every cell that the CSV does not hold yet, in this order, ``jobs`` at a time, until the plan's end."""
    finished = finished_cells(plan.csv)
    cells = [cell for cell in cells if cell not in finished]
    print(f"{len(cells)} cells, {jobs} at a time", flush=True)
    began = time.time()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:  # leaving it ends the processes
        outcomes = pool.imap_unordered(partial(train_cell, plan=plan), cells)
        for done in range(1, len(cells) + 1):
            try:
                outcome = outcomes.next(timeout=min(plan.end + GRACE - time.time(), threading.TIMEOUT_MAX))
            except multiprocessing.TimeoutError:
                return
            if outcome is not None:
                print(f"{done}/{len(cells)} {time.time() - began:6.0f} s  {outcome}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="after which it stops; for ever unless given")
    parser.add_argument("--checkpoints", type=Path, help="folder to keep unfinished models in, and to go on from")
    parser.add_argument("--csv", type=Path, default=Path("rl_memory.csv"))
    parser.add_argument("--picture", type=Path, default=Path("rl_memory.png"))
    parser.add_argument("--report", action="store_true", help="train nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
