"""A figure of a result page, drawn again from its archive.

Nothing is trained: the archive holds the Records. The same is `flooding reproduce kim2022_cifar10
--from docs/results/kim2022_cifar10.npz`. Without `--from` it is trained anew.
"""

from pathlib import Path

from flooding.entries import EXPERIMENTS, find_entry
from flooding.level_search.driver import run_generator

NAME = "kim2022_cifar10"
RESULTS = Path(__file__).parents[1] / "docs" / "results"

experiment = find_entry("experiment", NAME, EXPERIMENTS).load()
archive = experiment.load(RESULTS / f"{NAME}.npz")
# An experiment yields Runs and receives Records; here the archive answers.
report, records = run_generator(experiment.start(False, archive.seeds), archive)
print(f"{report.title}: {len(records)} Records, figures {', '.join(report.figures)}")
caption, draw = report.figures["levels"]
figure = draw()
figure.savefig("reproduce_figure.png", dpi=80)
print(caption)
