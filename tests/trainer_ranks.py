"""One of two gloo ranks that train by transformers' Trainer; rank 0 writes the figures.

Started by test_integration_transformers.py, with the environment that torchrun gives.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch

torch.set_num_threads(1)
warnings.filterwarnings("ignore")

import torch.distributed as dist  # noqa: E402
from transformers import Trainer  # noqa: E402

from flooding import flood  # noqa: E402
from flooding.integrations.transformers import FloodTrainerMixin  # noqa: E402
from trainer_twin import (  # noqa: E402
    bert,
    by_hand,
    distance,
    flat,
    llama,
    make_trainer,
    token_share,
)

EPOCHS, CLASS_LEVEL, TOKEN_LEVEL = 6, 0.75, 2.2


class FloodTrainer(FloodTrainerMixin, Trainer):
    pass


def naive_share(outputs, labels, num_items_in_batch=None):
    return flood(token_share(outputs, labels, num_items_in_batch), TOKEN_LEVEL)


def run(make, folder, level, kind=FloodTrainer, function=None, language=True):
    """Train on both ranks; gives the distance to the loop by hand and between the ranks."""
    model = make()
    options = {"compute_loss_func": function}
    if kind is FloodTrainer:
        options["flood_level"] = level
    # Two ranks with two micro-batches each: the steps of one rank with four.
    trainer = make_trainer(
        kind,
        model,
        folder,
        language=language,
        options=options,
        num_train_epochs=EPOCHS,
        gradient_accumulation_steps=2,
        ddp_find_unused_parameters=False,
    )
    trainer.train()
    other = flat(model)
    dist.broadcast(other, src=1)
    apart = (flat(model) - other).abs().max().item()
    reference, raw, _ = by_hand(make(), level, language=language, epochs=EPOCHS)
    logged = [entry["raw_loss"] for entry in trainer.state.log_history if "raw_loss" in entry]
    return {
        "distance": distance(model, reference),
        "apart": apart,
        "below": sum(loss < level for loss in raw) / len(raw),
        "logged": abs(logged[-1] - sum(raw[-3:]) / 3) if logged else None,
    }


def main(folder):
    figures = {
        "flooded": run(llama, folder, TOKEN_LEVEL, function=token_share),
        "naive": run(llama, folder, TOKEN_LEVEL, Trainer, naive_share),
        "head that ignores the count": run(bert, folder, CLASS_LEVEL, language=False),
    }
    if dist.get_rank() == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1])
