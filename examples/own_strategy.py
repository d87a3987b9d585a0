"""A search strategy of your own: bisection between plain training's two losses.

A strategy is a generator. It yields Runs, receives their Records, and returns a result. The
library trains, caches, and continues after an interruption.
"""

from functools import partial

import matplotlib.pyplot as plt

from flooding import Problem, Run, run_all, search
from flooding.data.synthetic import two_gaussians
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.models import mlp
from flooding.training.record import select_best


def bisection(problem, *, seed=0, rounds=3):
    """Train at thirds of an interval of levels, and keep the better part of it."""
    [plain] = yield [Run(problem, seed=seed)]
    low, high = 0.0, float(plain.curves["val_loss"][1:].min())
    records = [plain]
    for _ in range(rounds):
        levels = [low + share * (high - low) for share in (1 / 3, 2 / 3)]
        pair = yield [Run(problem, level, seed=seed) for level in levels]
        records += pair
        if select_best(pair, "last") is pair[0]:
            high = levels[1]
        else:
            low = levels[0]
    level = select_best(records, "last").level
    estimate = LevelEstimate("bisection", level, low, high)
    return SearchResult("bisection", Run(problem, level, seed=seed), (estimate,), records=records)


problem = Problem(
    data=partial(two_gaussians, n_test=1000, label_noise=0.1),
    model=partial(mlp, 10, 2, width=50, depth=2),
    max_epochs=150,
)
# workers=0 trains in this process: these trainings take less time than starting workers.
result = search(bisection(problem), partial(run_all, workers=0))
print(f"level {result.level:.2f}, {result.cost.trainings:.0f} trainings")

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
levels = [record.level or 0.0 for record in result.records]
scores = [record.metrics["last.val_accuracy"] for record in result.records]
ax.scatter(levels, scores, c=range(len(levels)), cmap="viridis", zorder=2)
for number, point in enumerate(zip(levels, scores, strict=True), 1):
    ax.annotate(str(number), point, textcoords="offset points", xytext=(5, 5))
ax.set(xlabel="level, nats", ylabel="validation accuracy, last epoch")
figure.savefig("own_strategy.png", dpi=100)
