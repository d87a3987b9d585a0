"""Other ways to spend two or three trainings on a level, replayed on stored trainings.

    python benchmarks/variants.py

Two families beside the finder's race: full trainings at fixed shares of the way to the cap, and a
short race whose best level (or two) is trained to the end and judged there, beside plain training.
Levels are rounded to those that were trained: 51 on the synthetic cells (seeds 0 to 4), 11 on the
real problems (seeds 1 and 2). Figures are clean test accuracy at the last epoch minus that of the
exhaustive choice. Nothing here has been confirmed on other seeds.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from searches import LEVELS, LEVELS_11, grids_of, interval

LATE = 1 / 8  # share of the epochs of a race that are averaged


class Grid:
    """All levels of a problem and seed."""

    def __init__(self, levels, accuracy, loss, test, train):
        self.levels, self.accuracy, self.loss, self.test, self.train = (
            np.asarray(levels),
            accuracy,
            loss,
            test,
            train,
        )
        self.max_epochs = self.accuracy.shape[1] - 1
        self.cap, self.floor = np.nanmin(self.loss[0, 1:]), np.nanmin(self.train[0, 1:])

    def near(self, share):
        """Give the level above 0 nearest to a share of the way from the floor to the cap."""
        level = self.floor + share * (self.cap - self.floor)
        return 1 + int(np.argmin(np.abs(self.levels[1:] - level)))

    def judge(self, place, until, epochs):
        """Average the last epochs of a training of some length."""
        part = slice(until + 1 - epochs, until + 1)
        return self.accuracy[place, part].mean(), -self.loss[place, part].mean()

    def best(self, places, until, epochs):
        """Choose a place; the smaller level of equals."""
        return max(places, key=lambda place: (*self.judge(place, until, epochs), -place))


def exhaustive(grid):
    return grid.best(range(len(grid.levels)), grid.max_epochs, 1)


def in_full(grid, shares, late):
    """Train plainly and at shares of the way to the cap, in full."""
    if grid.cap <= grid.floor:
        return 0, 1.0
    places = [0, *sorted({grid.near(share) for share in shares})]
    return grid.best(places, grid.max_epochs, max(1, round(late * grid.max_epochs))), len(places)


def race(grid, count, until, most, reach):
    """Race levels for a part of the epochs; train the best to the end, and judge it there."""
    if grid.cap <= grid.floor:
        return 0, 1.0
    places = sorted({grid.near((place + 0.5) / count * reach) for place in range(count)})
    epochs = max(1, round(until * grid.max_epochs))
    reached = [p for p in places if (grid.train[p, 1 : epochs + 1] <= grid.levels[p]).any()]
    cost = 1 + len(places) * until
    if not reached:
        return 0, cost
    judged = [grid.judge(p, epochs, max(1, round(LATE * epochs))) for p in reached]
    order = sorted(range(len(reached)), key=lambda i: (*judged[i], -i), reverse=True)[:most]
    return grid.best([0, *(reached[i] for i in order)], grid.max_epochs, 1), cost + len(order) * (
        1 - until
    )


VARIANTS = {
    **{
        f"in full at {' and '.join(map(str, shares))} of the cap, late {100 * late:g} %": partial(
            in_full, shares=shares, late=late
        )
        for shares in ((0.5,), (0.7,), (0.3, 0.7), (0.4, 0.8), (0.3, 0.6), (0.5, 0.8))
        for late in (0.0, 0.05, 0.1)
    },
    **{
        f"race of {count} for {100 * until:g} %, best {most} in full, up to {reach:g}": partial(
            race, count=count, stop_epoch=until, most=most, reach=reach
        )
        for count in (3, 4, 5)
        for until in (0.1, 0.15, 0.2, 0.25)
        for most in (1, 2)
        for reach in (0.8, 1.0)
    },
}


def main():
    synthetic = [Grid(LEVELS, *told) for told in grids_of("synthetic", range(5)).values()]
    real = [Grid(LEVELS_11, *told) for told in grids_of("real", (1, 2)).values()]
    rows = []
    for name, variant in VARIANTS.items():
        told = []
        for grids in (synthetic, real):
            chosen = [variant(grid) for grid in grids]
            gains = [
                100 * (g.test[p] - g.test[exhaustive(g)])
                for g, (p, _) in zip(grids, chosen, strict=True)
            ]
            told.append((*interval(gains), np.mean([cost for _, cost in chosen])))
        rows.append((name, told))
    print(f"| Variant | synthetic, n = {len(synthetic)} | cost | real, n = {len(real)} | cost |")
    print("|---|---|---|---|---|")
    for name, told in sorted(rows, key=lambda row: -min(part[0] for part in row[1])):
        texts = [
            f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] | {cost:.2f}" for mean, low, high, cost in told
        ]
        print(f"| {name} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
