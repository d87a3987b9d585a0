"""The obvious implementations that the fast ones are compared with."""

from __future__ import annotations

import torch
from torch.nn import functional

from flooding.training.rng import derive_seed, fork_rng


def by_hand(run, on_step=None):
    """Train a Run as anybody would write it down; returns the weights and the raw batch losses.

    ``on_step(model)`` is called after every step.
    """
    problem, losses = run.problem, []
    split, model = problem.splits(run.seed).train, problem.build(run.seed)
    optimizer = problem.optimizer(model.parameters())
    schedule = problem.lr_scheduler(optimizer) if problem.lr_scheduler else None
    with fork_rng(derive_seed(run.seed, "train")):
        for epoch in range(1, run.epochs + 1):
            order = torch.arange(len(split))
            if len(split) > problem.batch_size:
                generator = torch.Generator().manual_seed(derive_seed(run.seed, "order", epoch))
                order = torch.randperm(len(split), generator=generator)
            for index in order.split(problem.batch_size):
                model.train()
                loss = functional.cross_entropy(model(split.x[index]), split.y[index])
                losses.append(loss.item())
                optimizer.zero_grad()
                if run.level is None:
                    loss.backward()
                else:
                    ((loss - run.level).abs() + run.level).backward()
                if problem.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), problem.max_grad_norm)
                optimizer.step()
                if on_step is not None:
                    on_step(model)
            if schedule is not None:
                schedule.step()
    return model.state_dict(), losses
