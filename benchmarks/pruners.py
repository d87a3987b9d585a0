"""What pruners of Optuna and Ray Tune cost a search over the level.

    python benchmarks/pruners.py [--seeds 6] [--tune-seeds 2] [--draw-only]

Each search tries 16 levels on handwritten digits or on Sinusoid, with label noise, in a random
order that depends on the seed, and is judged by the validation loss of the last epoch. All levels
are trained to the end first, so that it is known how each pruned trial would have ended: the study,
or the Tuner, then reads the curves. A pruned trial would have won if it ends below every trial that
the search kept. The lines go into ``pruners.jsonl``; the tables on the pages of Optuna and Ray Tune
are drawn from them.

"counted from the first flooded epoch" means that a trial reports its first value after the first
epoch in which a step was flooded, as step 0, and is never asked about before.
"""

from __future__ import annotations

import argparse
import itertools
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
from flooding.data.synthetic import sinusoid
from flooding.data.tables import digits
from flooding.models import mlp

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".jsonl")
PAGES = {
    "Optuna": ROOT / "docs" / "frameworks" / "optuna.md",
    "Ray Tune": ROOT / "docs" / "frameworks" / "ray-tune.md",
}
EPOCHS = 40
NUM_LEVELS = 16
SINCE = "counted from the first flooded epoch"


class Curve(NamedTuple):
    """What a trial reports: a validation loss after each epoch, and when flooding began."""

    val_losses: list[float]
    first_flooded: int  # epoch, from 1; EPOCHS + 1 if no step was flooded

    def reports(self, since: bool) -> list[tuple[int, float]]:
        """Give step and value of each report."""
        losses = self.val_losses[self.first_flooded - 1 :] if since else self.val_losses
        return list(enumerate(losses))


Curves = dict[float, Curve]  # by level
Line = dict[str, object]


def problems() -> dict[str, tuple[Problem, list[float]]]:
    """Give each problem and the levels to try: up to half of a guess's loss, and almost to it."""
    digits_problem = Problem(
        partial(digits, n_train=300, n_val=300, label_noise=0.2),
        partial(mlp, 64, 10, width=100, depth=1),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        batch_size=100,
        max_epochs=EPOCHS,
    )
    sinusoid_problem = Problem(
        partial(sinusoid, n_train=100, n_val=100, n_test=100, label_noise=0.1),
        partial(mlp, 2, 2, width=100, depth=2),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        batch_size=25,
        max_epochs=EPOCHS,
    )
    return {
        "digits": (digits_problem, [round(0.075 * n, 3) for n in range(1, NUM_LEVELS + 1)]),
        "Sinusoid": (sinusoid_problem, [round(0.04 * n, 2) for n in range(1, NUM_LEVELS + 1)]),
    }


def train_all(problem: Problem, levels: list[float], seeds: int) -> tuple[list[Curves], float]:
    """Train every level with every seed.

    Returns:
        The curves by level for each seed, and the trainings that were paid with shared first
        steps, per seed.
    """
    runs = [Run(problem, level, seed=seed) for seed in range(seeds) for level in levels]
    curves: list[Curves] = [{} for _ in range(seeds)]
    epochs_trained = 0
    for run, record in zip(runs, run_all(runs, ledger=False), strict=True):
        epochs_trained += record.metadata["epochs_trained"]
        flooded = record.curves["flooded"]
        first = next((epoch for epoch in range(1, EPOCHS + 1) if flooded[epoch] > 0), EPOCHS + 1)
        losses = [float(loss) for loss in record.curves["val_loss"][1:]]
        curves[run.seed][run.level] = Curve(losses, first)
    return curves, epochs_trained / EPOCHS / seeds


def judge(curves: Curves, reported: dict[float, int], pruned: set[float]) -> Line:
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
        "given_away": round(kept_best - min(ends.values()), 4),
        "lost_the_best": min(ends, key=ends.__getitem__) in pruned,
        "trainings": round(sum(reported.values()) / EPOCHS, 2),
    }


# Optuna


Search = Callable[[Curves, Callable[[], object], bool, int], Line]


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
    curves: Curves, make_pruner: Callable[[], object], since: bool, seed: int
) -> Line:
    """Let a study with a pruner read the curves."""
    import optuna

    reported: dict[float, int] = {}

    def objective(trial: optuna.Trial) -> float:
        level = trial.suggest_categorical("level", list(curves))
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
        study_name=f"search {seed}",  # Hyperband draws brackets from it
        sampler=optuna.samplers.RandomSampler(seed=seed),
        pruner=make_pruner(),
    )
    order = random.Random(seed).sample(list(curves), len(curves))
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
    curves: Curves, make_scheduler: Callable[[], object], since: bool, seed: int
) -> Line:
    """Let a Tuner with a scheduler read the curves, two trials at a time."""
    from ray import tune

    def replay(config: dict[str, float]) -> None:
        for _, value in curves[config["level"]].reports(since):
            tune.report({"val_loss": value})

    order = random.Random(seed).sample(list(curves), len(curves))
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
    searches = next(iter(rows.values()))
    names = [str(line["problem"]) for line in searches]
    on = ", ".join(f"{names.count(name)} on {name}" for name in dict.fromkeys(names))
    text = [
        f"| {len(searches)} searches of {NUM_LEVELS} levels ({on}) | Trials pruned "
        "| Of them would have won | Searches that pruned the best level "
        "| Validation loss given away | Trainings a search |",
        "|---|---|---|---|---|---|",
    ]
    for (pruner, since), row in rows.items():
        text.append(
            f"| {pruner}{', ' + SINCE if since else ''} "
            f"| {_sum(row, 'pruned'):.0f} of {_sum(row, 'trials'):.0f} "
            f"| {_sum(row, 'would_have_won'):.0f} | {_sum(row, 'lost_the_best'):.0f} of {len(row)} "
            f"| {_sum(row, 'given_away') / len(row):.3f} "
            f"| {_sum(row, 'trainings') / len(row):.1f} |"
        )
    shared = _sum(searches, "shared_trainings") / len(searches)
    text.append(
        f"| no pruning, but `flooding.run_all`, which shares first steps | 0 | 0 | 0 | 0 "
        f"| {shared:.1f} |"
    )
    return "\n".join(text)


def _sum(lines: list[Line], name: str) -> float:
    return sum(
        float(str(line[name])) if name != "lost_the_best" else bool(line[name]) for line in lines
    )


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
    lines: list[Line] = []
    all_curves = {}
    for name, (problem, levels) in problems().items():
        all_curves[name] = train_all(problem, levels, seeds)

    def search(tool: str, run: Search, makers: dict[str, Callable[[], object]], seeds: int) -> None:
        for since, (pruner, make) in itertools.product((False, True), makers.items()):
            for name, (curves, shared) in all_curves.items():
                for seed in range(seeds):
                    about = {"tool": tool, "pruner": pruner, "since": since}
                    about |= {"problem": name, "seed": seed, "shared_trainings": round(shared, 2)}
                    lines.append(about | run(curves[seed], make, since, seed))
                    print(lines[-1], flush=True)

    search("Optuna", optuna_search, optuna_pruners(), seeds)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        search("Ray Tune", tune_search, tune_schedulers(), tune_seeds)
    finally:
        ray.shutdown()
    return lines


def main() -> None:
    """Measure, store the lines and draw the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--tune-seeds", type=int, default=2)
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
