"""Each variant changes one thing; figures and words follow the Records."""

from functools import partial

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from flooding.experiments.ishida2020_settings import one_logit, start, variants
from flooding.experiments.synthetic_cells import synthetic_cell
from flooding.level_search.driver import run_generator
from flooding.training.archive import run_id
from flooding.training.record import Record

PAPER = synthetic_cell("two-gaussians", 0.05).problem


def test_one_logit_has_the_logistic_loss():
    torch.manual_seed(0)
    net, x, y = one_logit(width=8, depth=1), torch.randn(20, 10), torch.randint(2, (20,))
    logits = net(x)
    assert logits.shape == (20, 2)
    assert (logits[:, 0] == 0).all()
    torch.testing.assert_close(
        cross_entropy(logits, y), binary_cross_entropy_with_logits(logits[:, 1], y.float())
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("as in our table", set()),
        ("one logit", {"model"}),
        ("mini-batches of 20", {"batch_size"}),
        ("batch norm", {"model"}),
        ("200 training examples", {"data", "batch_size"}),
    ],
)
def test_a_variant_changes_what_it_says_and_nothing_else(name, fields):
    changed = variants(PAPER)[name]
    assert {
        f for f in vars(PAPER) if repr(getattr(PAPER, f)) != repr(getattr(changed, f))
    } == fields
    splits = changed.splits(0)
    assert len(splits.train) == (200 if "200" in name else 100)
    assert changed.build(0)(splits.train.x).shape == (len(splits.train), 2)


def test_the_reproductions_setting_keeps_the_noise():
    splits = variants(PAPER)["the reproduction's"].splits(0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [1000, 100, 20_000]
    assert int((splits.train.y != splits.train.clean).sum()) == 50


def answer(runs, worth):
    return [
        Record(r, {}, {}, {"last.test_accuracy": worth(r)}, "", "", {"seconds": 1.0, "on": "here"})
        for r in runs
    ]


def test_words_follow_the_numbers():
    def worth(run):
        paper = {0.01: 0.9052, 0.05: 0.8479, 0.1: 0.7844}[run.problem.data.keywords["label_noise"]]
        batches = run.problem.batch_size == 20
        return paper + (0.001 if batches else -0.02) + 0.002 * run.seed

    report, records = run_generator(start(seeds=[0, 1]), partial(answer, worth=worth))
    assert len({run_id(record.run) for record in records}) == 6 * 3 * 2
    assert len(report.failures) == 5
    assert report.failures[0].startswith(
        "as in our table: -1.9 ± 0.1, -1.9 ± 0.1, -1.9 ± 0.1 points"
    )
    near, sure = report.findings
    assert near.startswith("mini-batches of 20: 0.2 ± 0.1, 0.2 ± 0.1, 0.2 ± 0.1 points")
    assert "significant at 5 % (n = 2): mini-batches of 20, Two Gaussians, 1 % (+2.1 [" in sure
    [table] = report.tables
    by_name = {row[0]: row for row in table.rows}
    assert by_name["mini-batches of 20"][2].startswith("+2.1 [")
    assert by_name["the paper"][1::2] == ["90.52", "84.79", "78.44"]
