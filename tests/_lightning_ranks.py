"""What two ranks of Lightning's DDP do: started by test_integration_lightning.py."""

import json
import logging
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

LOADED = set(sys.modules)
from flooding.integrations.lightning import FloodCallback  # noqa: E402

# Packages that the adapter loads besides Lightning and the standard library.
ADDED = {name.partition(".")[0] for name in set(sys.modules) - LOADED} - sys.stdlib_module_names

from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from flooding import Flood  # noqa: E402
from flooding.levels import Plateau, StepInfo  # noqa: E402
from framework_oracle import (  # noqa: E402
    EPOCHS,
    EXAMPLES,
    LEVEL,
    Oracle,
    data,
    distance,
    flat,
    network,
    rank_order,
    sgd,
)

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(pl.LightningModule):
    def __init__(self, criterion=None):
        super().__init__()
        self.net = network()
        self.criterion = criterion or nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        # Without sync_dist: each rank logs the loss of its own half.
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return sgd(self.parameters())


def fit(accumulate, callback=None, criterion=None):
    """Train; give the model and how far the ranks are apart."""
    module = Module(criterion)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        devices=2,
        strategy="ddp",
        accelerator="cpu",
        precision="64-true",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback] if callback else None,
    )
    rank = trainer.global_rank
    examples = TensorDataset(*data())
    train = DataLoader(examples, batch_size=8, sampler=range(rank, EXAMPLES, 2))
    val = DataLoader(examples, batch_size=64, sampler=range(rank, EXAMPLES, 2))
    trainer.fit(module, train, val)
    other = flat(module.net)
    torch.distributed.broadcast(other, src=1)
    return module.net, (flat(module.net) - other).abs().max().item(), rank


def val_info(model):
    x, y = data()
    halves = [F.cross_entropy(model(x[rank::2]), y[rank::2]) for rank in range(2)]
    return StepInfo(None, val_loss=sum(halves).detach().float() / 2)


def main(folder):
    torch.set_num_threads(1)
    plateau = Plateau(0.5, patience=1, step_size=0.05, high=0.6)
    figures = {"added packages": sorted(ADDED)}
    for accumulate in (1, 4):
        oracle = Oracle(order=rank_order(8 * accumulate))
        model, apart, rank = fit(accumulate, FloodCallback(LEVEL))
        figures[f"callback {accumulate}"] = distance(model, oracle.model)
        figures[f"apart {accumulate}"] = apart
        model, *_ = fit(accumulate, criterion=Flood(nn.CrossEntropyLoss(), LEVEL))
        figures[f"naive {accumulate}"] = distance(model, oracle.model)
    oracle = Oracle(plateau, order=rank_order(8), epoch_info=val_info)
    model, apart, rank = fit(1, FloodCallback(plateau))
    figures["plateau"] = distance(model, oracle.model)
    figures["apart plateau"] = apart
    if rank == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])
