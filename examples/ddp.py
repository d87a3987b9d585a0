"""Two processes on the CPU: DistributedDataParallel, and one decision for all ranks.

Each rank has half of the training data. FloodStep needs no extra line: one all-reduce of two
numbers makes the decision the same on both ranks. On several GPUs the code is the same.
"""

import tempfile

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from flooding import FloodStep
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp

LEVEL, RANKS = 0.3, 2


def fit(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    torch.manual_seed(0)
    train = two_gaussians(n_test=10, label_noise=0.1, seed=0).train
    x, y = train.x[rank::RANKS], train.y[rank::RANKS]
    model = DistributedDataParallel(mlp(10, 2, width=50, depth=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    flood_step = FloodStep(optimizer, LEVEL)
    losses, slopes = [], []
    for _ in range(150):
        loss = flood_step(functional.cross_entropy(model(x), y))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        slopes.append(float(flood_step.slope))
    torch.save((losses, slopes), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def main():
    import matplotlib.pyplot as plt  # here, since every rank imports this file

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(fit, (folder,), nprocs=RANKS)
        ranks = [torch.load(f"{folder}/rank{rank}.pt") for rank in range(RANKS)]

    (_, first), (_, second) = ranks
    print(f"the same decision on both ranks in every step: {first == second}")
    figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for rank, (losses, _) in enumerate(ranks):
        ax.plot(losses, label=f"rank {rank}, its own half")
    ax.axhline(LEVEL, color="gray", linestyle=":", label="level")
    ax.set(xlabel="step", ylabel="loss, nats", ylim=(0, 0.8))
    ax.legend()
    figure.savefig("ddp.png", dpi=100)


if __name__ == "__main__":
    main()
