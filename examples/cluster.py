"""A Ray cluster: levels and seeds side by side, here on a cluster of this machine alone.

On a real cluster give ``address="auto"`` in place of "local", and submit the script to it. The
Records are the same to the bit as those of ``flooding.run_all`` on a machine of the same kind.
"""

from functools import partial
from statistics import mean, stdev

import matplotlib.pyplot as plt
import ray

from flooding import Problem, Run
from flooding.data.synthetic import two_gaussians
from flooding.integrations.ray import run_all
from flooding.models import mlp

problem = Problem(
    data=partial(two_gaussians, n_test=1000, label_noise=0.1),
    model=partial(mlp, 10, 2, width=50, depth=2),
    max_epochs=100,
)
levels = [None, 0.15, 0.3, 0.45]
runs = [Run(problem, level, seed=seed) for seed in range(3) for level in levels]
records = run_all(runs, address="local", ledger="cluster.sqlite")
ray.shutdown()

accuracies = {
    level: [r.metrics["last.test_accuracy_clean"] for r in records if r.level == level]
    for level in levels
}
for level, values in accuracies.items():
    print(f"level {level or 0:g}: {mean(values):.3f} ± {stdev(values):.3f}, n = {len(values)}")

figure, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
means, spreads = zip(*((mean(v), stdev(v)) for v in accuracies.values()), strict=True)
ax.errorbar([level or 0 for level in levels], means, spreads, marker="o", capsize=3)
ax.set(xlabel="level, nats", ylabel="clean test accuracy, last epoch")
figure.savefig("cluster.png", dpi=80)
