"""What pruners of Optuna and Ray Tune cost a search over the level.

    python benchmarks/pruners.py [--seeds 6] [--tune-seeds 3] [--draw-only]

Each search tries the same 16 levels on handwritten digits with label noise, in a random order that
depends on the seed, and is judged by the validation loss of the last epoch. All levels are trained
to the end first, so that it is known how each pruned trial would have ended: the study, or the
Tuner, then reads the curves. A pruned trial would have won if it ends below every trial that the
search kept. The lines go into ``pruners.jsonl``; the tables on the pages of Optuna and Ray Tune are
drawn from them.

"counted from the first flooded epoch" means that a trial reports its first value after the first
epoch in which a step was flooded, as step 0, and is never asked about before.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from flooding import Problem, Run, run_all
from flooding.data.tables import digits
from flooding.models import mlp

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".jsonl")
PAGES = {
    "Optuna": ROOT / "docs" / "frameworks" / "optuna.md",
    "Ray Tune": ROOT / "docs" / "frameworks" / "ray-tune.md",
}
EPOCHS = 40
LEVELS = [round(0.075 * n, 3) for n in range(1, 17)]
SINCE = "counted from the first flooded epoch"

Line = dict[str, object]


class Curve(NamedTuple):
    """What a trial reports: a validation loss after each epoch, and when flooding began."""

    val_losses: list[float]
    first_flooded: int  # epoch, from 1; EPOCHS + 1 if no step was flooded

    def reports(self, since: bool) -> list[tuple[int, float]]:
        """Give step and value of each report."""
        losses = self.val_losses[self.first_flooded - 1 :] if since else self.val_losses
        return list(enumerate(losses))


def problem() -> Problem:
    """Give the digits with a fifth of the labels wrong."""
    return Problem(
        partial(digits, n_train=300, n_val=300, label_noise=0.2),
        partial(mlp, 64, 10, width=100, depth=1),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        batch_size=100,
        max_epochs=EPOCHS,
    )


def train_all(seeds: int) -> tuple[list[dict[float, Curve]], float]:
    """Train every level with every seed.

    Returns:
        The curves by level for each seed, and the trainings that were paid with shared prefixes,
        per seed.
    """
    task = problem()
    runs = [Run(task, level, seed=seed) for seed in range(seeds) for level in LEVELS]
    curves: list[dict[float, Curve]] = [{} for _ in range(seeds)]
    epochs_trained = 0
    for run, record in zip(runs, run_all(runs, ledger=False), strict=True):
        epochs_trained += record.metadata["epochs_trained"]
        flooded = record.curves["flooded"]
        first = next((epoch for epoch in range(1, EPOCHS + 1) if flooded[epoch] > 0), EPOCHS + 1)
        losses = [float(loss) for loss in record.curves["val_loss"][1:]]
        curves[run.seed][run.level] = Curve(losses, first)
    return curves, epochs_trained / EPOCHS / seeds


def judge(curves: dict[float, Curve], reported: dict[float, int], pruned: set[float]) -> Line:
    """Compare a search with what its pruned trials would have given.

    Args:
        curves: By level.
        reported: Epochs that each level trained.
        pruned: Levels of the trials that were pruned.
    """
    ends = {level: curve.val_losses[-1] for level, curve in curves.items()}
    kept_best = min((end for level, end in ends.items() if level not in pruned), default=1e9)
    return {
        "trials": len(curves),
        "pruned": len(pruned),
        "would_have_won": sum(ends[level] < kept_best for level in pruned),
        "lost_the_best": min(ends, key=ends.__getitem__) in pruned,
        "trainings": round(sum(reported.values()) / EPOCHS, 2),
    }


# Optuna


def optuna_pruners() -> dict[str, Callable[[], object]]:
    """Name the pruners."""
    from optuna import pruners

    return {
        "`MedianPruner()`": pruners.MedianPruner,
        "`SuccessiveHalvingPruner()`": pruners.SuccessiveHalvingPruner,
        f"`HyperbandPruner(max_resource={EPOCHS})`": partial(
            pruners.HyperbandPruner, max_resource=EPOCHS
        ),
    }


def optuna_search(
    curves: dict[float, Curve], make_pruner: Callable[[], object], since: bool, seed: int
) -> Line:
    """Let a study with a pruner read the curves."""
    import optuna

    reported: dict[float, int] = {}

    def objective(trial: optuna.Trial) -> float:
        level = trial.suggest_categorical("level", LEVELS)
        curve = curves[level]
        start = curve.first_flooded - 1 if since else 0
        for step, value in curve.reports(since):
            reported[level] = start + step + 1
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        reported[level] = EPOCHS
        return curve.val_losses[-1]

    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=seed), pruner=make_pruner()
    )
    order = random.Random(seed).sample(LEVELS, len(LEVELS))
    for level in order:
        study.enqueue_trial({"level": level})
    study.optimize(objective, n_trials=len(order))
    is_pruned = optuna.trial.TrialState.PRUNED
    pruned = {trial.params["level"] for trial in study.trials if trial.state == is_pruned}
    return judge(curves, reported, pruned)


# Ray Tune


def tune_schedulers() -> dict[str, Callable[[], object]]:
    """Name the schedulers; each counts the reports of a trial."""
    from ray.tune import schedulers

    return {
        f"`ASHAScheduler(max_t={EPOCHS}, grace_period=4)`": partial(
            schedulers.ASHAScheduler, max_t=EPOCHS, grace_period=4
        ),
        "`MedianStoppingRule(grace_period=4)`": partial(
            schedulers.MedianStoppingRule,
            time_attr="training_iteration",
            grace_period=4,
            min_samples_required=3,
        ),
    }


def tune_search(
    curves: dict[float, Curve], make_scheduler: Callable[[], object], since: bool, seed: int
) -> Line:
    """Let a Tuner with a scheduler read the curves, two trials at a time."""
    from ray import tune

    def replay(config: dict[str, float]) -> None:
        for _, value in curves[config["level"]].reports(since):
            tune.report({"val_loss": value})

    order = random.Random(seed).sample(LEVELS, len(LEVELS))
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(replay, {"cpu": 1}),
            param_space={"level": tune.grid_search(order)},
            tune_config=tune.TuneConfig(
                metric="val_loss", mode="min", scheduler=make_scheduler(), max_concurrent_trials=2
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = list(tuner.fit())
    reported, pruned = {}, set()
    for result in results:
        level = result.config["level"]
        # A trial that was never flooded reports nothing, and trains to its end.
        number = (result.metrics or {}).get("training_iteration", 0)
        if number < len(curves[level].reports(since)):
            pruned.add(level)
        reported[level] = number + (curves[level].first_flooded - 1 if since else 0)
    return judge(curves, reported, pruned)


# The tables


def draw(lines: list[Line], tool: str) -> str:
    """Draw the table of a tool from the stored lines."""
    rows: dict[tuple[str, bool], list[Line]] = {}
    for line in lines:
        if line["tool"] == tool:
            rows.setdefault((str(line["pruner"]), bool(line["since"])), []).append(line)
    [shared] = {line["shared_trainings"] for line in lines}
    number = len(next(iter(rows.values())))
    text = [
        f"| {number} searches of {len(LEVELS)} levels | Trials pruned | Of them would have won "
        "| Searches that pruned the best level | Trainings paid a search |",
        "|---|---|---|---|---|",
    ]
    for (pruner, since), searches in rows.items():
        sums = {
            name: sum(float(str(line[name])) for line in searches)
            for name in ("trials", "pruned", "would_have_won", "trainings")
        }
        lost = sum(bool(line["lost_the_best"]) for line in searches)
        text.append(
            f"| {pruner}{', ' + SINCE if since else ''} "
            f"| {sums['pruned']:.0f} of {sums['trials']:.0f} | {sums['would_have_won']:.0f} "
            f"| {lost} of {len(searches)} | {sums['trainings'] / len(searches):.1f} |"
        )
    text.append(
        "| no pruning, `flooding.run_all` shares first steps | 0 | 0 | 0 "
        f"| {float(str(shared)):.1f} |"
    )
    return "\n".join(text)


def write_pages(lines: list[Line]) -> None:
    """Put the tables on their pages."""
    pattern = r"(<!-- pruners:begin -->\n).*?(<!-- pruners:end -->)"
    for tool, page in PAGES.items():
        table = draw(lines, tool)
        print(f"{tool}\n{table}\n")
        text = page.read_text()
        page.write_text(
            re.sub(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
        )


def measure(seeds: int, tune_seeds: int) -> list[Line]:
    """Run all searches."""
    import optuna
    import ray

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    curves, shared = train_all(seeds)
    lines: list[Line] = []

    def note(tool: str, pruner: str, since: bool, seed: int, line: Line) -> None:
        about = {"tool": tool, "pruner": pruner, "since": since, "seed": seed}
        lines.append(about | line | {"shared_trainings": round(shared, 2)})
        print(lines[-1], flush=True)

    for since in (False, True):
        for name, make in optuna_pruners().items():
            for seed in range(seeds):
                line = optuna_search(curves[seed], make, since, seed)
                note("Optuna", name, since, seed, line)
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        for since in (False, True):
            for name, make in tune_schedulers().items():
                for seed in range(tune_seeds):
                    line = tune_search(curves[seed], make, since, seed)
                    note("Ray Tune", name, since, seed, line)
    finally:
        ray.shutdown()
    return lines


def main() -> None:
    """Measure, store the lines and draw the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--tune-seeds", type=int, default=3)
    parser.add_argument("--draw-only", action="store_true", help="draw the stored lines again")
    options = parser.parse_args()
    if options.draw_only:
        lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    else:
        lines = measure(options.seeds, options.tune_seeds)
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_pages(lines)


if __name__ == "__main__":
    main()
