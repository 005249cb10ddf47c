"""Table and learning curves of the learning benchmark, from its CSV."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from rl_memory_cells import ALGORITHMS, Cell

COLUMNS = ("environment", "algorithm", "seed", "phase", "step", "reward", "fps")
LABELS = {
    "xlstm": "xLSTM (mLSTM block)",
    "xlstm_scale_1": "xLSTM, at scale 1",
    "slstm": "xLSTM (sLSTM block)",
    "lstm": "LSTM, same trainer",
    "gru": "GRU, same trainer",
    "recurrent_ppo": "sb3-contrib RecurrentPPO",
    "ppo": "PPO",
    "ppo_4_frames": "PPO, 4 frames",
}
COLOURS = dict(
    zip(
        ALGORITHMS,
        ("#c2410c", "#facc15", "#ea9a5b", "#1d4ed8", "#0e9f8e", "#7c3aed", "#64748b", "#a8a29e"),
        strict=True,
    )
)
WORLDS = ["environment", "algorithm"]


def read(csv: Path) -> pd.DataFrame:
    """All rows; of a cell that was begun more than once the newest."""
    if not csv.exists():
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.read_csv(csv, names=COLUMNS)
    return rows.drop_duplicates(["environment", "algorithm", "seed", "phase", "step"], keep="last")


def finished_cells(csv: Path) -> set[Cell]:
    """Those that were evaluated."""
    rows = read(csv)
    done = rows[rows.phase == "evaluation"]
    return {Cell(*row) for row in done[["environment", "algorithm", "seed"]].itertuples(index=False)}


def interquartile_mean(values: pd.Series) -> float:
    """The mean without the lowest and the highest quarter (Agarwal et al. 2021): of five seeds the middle three."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def print_table(results: pd.DataFrame) -> None:
    """The evaluations: interquartile mean and range over the seeds, and the speed."""
    print(f"{'':<60}{'IQM':>11}{'lowest':>11}{'highest':>11}{'seeds':>7}{'steps':>10}{'steps/s':>9}")
    done = results[results.phase == "evaluation"]
    for (environment, algorithm), cells in in_order(done):
        rewards, steps, fps = cells.reward, cells.step.max(), cells.fps.median()
        figures = f"{interquartile_mean(rewards):11.3f}{rewards.min():11.3f}{rewards.max():11.3f}"
        print(f"{environment:<33}{LABELS[algorithm]:<27}{figures}{len(cells):7}{steps:10,}{fps:9,.0f}")


def in_order(rows: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Groups by environment and algorithm, as they stand in the CSV and in ``ALGORITHMS``."""
    groups = dict(list(rows.groupby(WORLDS, sort=False)))
    environments = list(dict.fromkeys(rows.environment))
    keys = [(environment, algorithm) for environment in environments for algorithm in ALGORITHMS]
    return [(key, groups[key]) for key in keys if key in groups]


def draw(results: pd.DataFrame, picture: Path) -> None:
    """One panel for each environment: interquartile mean over the seeds, and their range, along the training."""
    training = results[results.phase == "training"]
    environments = list(dict.fromkeys(training.environment))
    if not environments:
        return
    columns = min(3, len(environments))
    rows = -(-len(environments) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.0 * rows), layout="constrained", squeeze=False)
    panels = dict(zip(environments, axes.flat, strict=False))
    for (environment, algorithm), cells in in_order(training):
        curve = cells.groupby("step").reward.agg([interquartile_mean, "min", "max"])
        line = {"color": COLOURS[algorithm], "label": LABELS[algorithm]}
        panels[environment].plot(curve.index, curve["interquartile_mean"], linewidth=1.8, **line)
        panels[environment].fill_between(curve.index, curve["min"], curve["max"], color=COLOURS[algorithm], alpha=0.12)
    for environment, panel in panels.items():
        panel.set_title(environment.removeprefix("popgym-"), loc="left", fontsize=10, weight="bold")
        panel.set_xlabel("environment steps", fontsize=8)
        panel.xaxis.set_major_locator(plt.MaxNLocator(5))
        panel.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:,.0f}k")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
    for panel in axes.flat[len(environments) :]:
        panel.set_axis_off()
    handles = {
        label: handle
        for panel in panels.values()
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(picture, dpi=130)
    plt.close(figure)
