"""What policies with memory learn where memory matters, beside PPO without one, with stacked frames, and RecurrentPPO.

pip install popgym minigrid sb3-contrib
python benchmarks/rl_memory.py --jobs 8                                  # everything: about a day of one core
python benchmarks/rl_memory.py --environments TMaze50-v0 --seeds 0 1 2   # a part
python benchmarks/rl_memory.py --report                                  # table and picture of what has been run

Each (environment, algorithm, seed) trains in one process of one thread, and appends to the CSV as it goes: a run that
is interrupted continues with what is not finished.
"""

import argparse
import itertools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rl_memory_cells import ALGORITHMS, Cell, train_cell
from rl_memory_report import draw, finished_cells, print_table, read

ENVIRONMENTS = (
    "CartPoleNoVel-v1",
    "PendulumNoVel-v1",
    "popgym-RepeatPreviousEasy-v0",
    "popgym-RepeatFirstEasy-v0",
    "popgym-AutoencodeEasy-v0",
    "popgym-RepeatPreviousMedium-v0",
    "TMaze50-v0",
    "TMaze200-v0",
    "MiniGrid-MemoryS9-v0",
)


def main() -> None:
    arguments = parse_arguments()
    if not arguments.report:
        run(arguments)
    results = read(arguments.csv)
    print_table(results)
    draw(results, arguments.picture)
    print(f"learning curves: {arguments.picture}")


def run(arguments: argparse.Namespace) -> None:
    """Train every cell that the CSV does not hold yet."""
    wanted = itertools.product(arguments.seeds, arguments.environments, arguments.algorithms)
    cells = [Cell(environment, algorithm, seed) for seed, environment, algorithm in wanted]
    cells = [cell for cell in cells if cell not in finished_cells(arguments.csv)]
    print(f"{len(cells)} cells, {arguments.jobs} at a time")
    context, began = multiprocessing.get_context("spawn"), time.perf_counter()
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        futures = [pool.submit(train_cell, cell, arguments.csv, arguments.steps) for cell in cells]
        for done, future in enumerate(as_completed(futures), start=1):
            print(f"{done}/{len(cells)} {time.perf_counter() - began:6.0f} s  {future.result()}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--csv", type=Path, default=Path("rl_memory.csv"))
    parser.add_argument("--picture", type=Path, default=Path("rl_memory.png"))
    parser.add_argument("--report", action="store_true", help="train nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
