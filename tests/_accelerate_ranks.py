"""Two ranks of Accelerate, Fabric or DeepSpeed: started by test_integration_accelerate.py."""

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from flooding import Flood, FloodStep
from flooding.levels import Warmup
from framework_oracle import (
    ACCUMULATE,
    EPOCHS,
    EXAMPLES,
    LEVEL,
    MICRO,
    Oracle,
    data,
    distance,
    flat,
    network,
    rank_order,
    sgd,
)

# DeepSpeed's trainings that resume do so after so many epochs, in the middle of the warm-up.
WARMUP, CHECKPOINT_EPOCHS = Warmup(LEVEL, steps=12), 4


def ranks_apart(model):
    other = flat(model)
    torch.distributed.broadcast(other, src=1)
    return (flat(model) - other).abs().max().item()


def accelerate_(accumulate, is_naive):
    from accelerate import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=accumulate, cpu=True)
    model = network()
    # Accelerate deals whole micro-batches to the ranks in turn.
    loader = DataLoader(TensorDataset(*data()), batch_size=MICRO)
    model, optimizer, loader = accelerator.prepare(model, sgd(model.parameters()), loader)
    criterion = nn.CrossEntropyLoss()
    flood_step = None
    if is_naive:
        criterion = Flood(criterion, LEVEL)
    else:
        flood_step = FloodStep(optimizer, LEVEL)
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = criterion(model(x), y)
                if flood_step is not None:
                    flood_step(loss)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model)


def accelerate_figures():
    figures = {}
    for accumulate in (1, 4):
        order = torch.arange(EXAMPLES).split(2 * MICRO * accumulate)
        expected = Oracle(order=order)
        model = accelerate_(accumulate, False)
        figures[f"step {accumulate}"] = distance(model, expected.model)
        figures[f"apart {accumulate}"] = ranks_apart(model)
        figures[f"naive {accumulate}"] = distance(accelerate_(accumulate, True), expected.model)
    figures["a rank without a loss"] = missing_loss()
    return figures


def missing_loss():
    """As in pipeline parallelism: 1 if both ranks raise before the first step."""
    model = network()
    optimizer = sgd(model.parameters())
    flood_step = FloodStep(optimizer, LEVEL)
    x, y = data()
    loss = F.cross_entropy(model(x), y)
    if torch.distributed.get_rank() == 1:
        flood_step(loss)
    loss.backward()
    raised = torch.zeros(())
    try:
        optimizer.step()
    except RuntimeError as error:
        raised += "Pipeline parallelism" in str(error) and distance(model, network()) == 0
    torch.distributed.all_reduce(raised)
    return float(raised) / 2


def fabric_figures():
    from lightning.fabric import Fabric

    # Fabric converts the outputs of a model to the default dtype.
    torch.set_default_dtype(torch.float64)

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
    fabric.launch()
    figures = {}
    rank = fabric.global_rank
    x, y = (part[rank::2] for part in data())
    expected = Oracle(order=rank_order(MICRO * ACCUMULATE))
    for is_naive in (False, True):
        model = network()
        model, optimizer = fabric.setup(model, sgd(model.parameters()))
        flood_step = FloodStep(optimizer, None if is_naive else LEVEL)
        criterion = Flood(nn.CrossEntropyLoss(), LEVEL if is_naive else None)
        for i in range(EPOCHS * len(x) // MICRO):
            start = i * MICRO % len(x)
            is_last = (i + 1) % ACCUMULATE == 0
            with fabric.no_backward_sync(model, enabled=not is_last):
                loss = criterion(model(x[start : start + MICRO]), y[start : start + MICRO])
                fabric.backward(flood_step(loss) / ACCUMULATE)
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
        figures["naive" if is_naive else "step"] = distance(model, expected.model)
    figures["apart"] = ranks_apart(model)
    return figures


def deepspeed_(stage, is_naive, groups=1, clipping=0.0, level=LEVEL, folder=None, resume=None):
    """Train; with a folder, go on from its checkpoint after four epochs in a new engine.

    ``resume`` tells whether the checkpoint holds the state of FloodStep, too.
    """
    import deepspeed

    rank = torch.distributed.get_rank()
    x, y = (part[rank::2] for part in data(dtype=torch.float32))
    model = network(torch.float32)
    parameters = list(model.parameters())
    if groups > 1:
        parameters = [{"params": parameters[:2]}, {"params": parameters[2:]}]
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model,
        optimizer=sgd(parameters),
        config={
            "train_micro_batch_size_per_gpu": MICRO,
            "gradient_accumulation_steps": ACCUMULATE,
            "gradient_clipping": clipping,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        },
    )
    criterion = Flood(nn.CrossEntropyLoss(), level if is_naive else None)
    flood_step = FloodStep(optimizer, None if is_naive else level)
    epochs = EPOCHS
    if resume is not None:
        _, client_state = engine.load_checkpoint(folder)
        epochs -= CHECKPOINT_EPOCHS
        if resume:
            flood_step.load_state_dict(client_state["flood_step"])
    elif folder is not None:
        epochs = CHECKPOINT_EPOCHS
    for i in range(epochs * len(x) // MICRO):
        start = i * MICRO % len(x)
        loss = criterion(engine(x[start : start + MICRO]), y[start : start + MICRO])
        engine.backward(flood_step(loss))
        engine.step()
    if folder is not None and resume is None:
        engine.save_checkpoint(folder, client_state={"flood_step": flood_step.state_dict()})
    trained = network(torch.float32)
    weights = {name: value.detach() for name, value in engine.module.state_dict().items()}
    trained.load_state_dict(weights)
    if resume is not False:
        steps = EPOCHS if folder is None or resume else CHECKPOINT_EPOCHS
        assert int(flood_step.n_steps) == steps * len(x) // (MICRO * ACCUMULATE)
    with torch.no_grad():
        loss = criterion(trained(x), y)
        trained.evaluation_error = abs(float(flood_step(loss) - loss))
    return trained


def deepspeed_figures(folder):
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    logging.disable(logging.WARNING)
    # Nothing is to be compiled for a test.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    order = rank_order(MICRO * ACCUMULATE)
    expected = Oracle(order=order, dtype=torch.float32)
    plain = Oracle(None, order=order, dtype=torch.float32)
    clipped = Oracle(order=order, dtype=torch.float32, norm=0.2)
    figures = {}
    for stage in (0, 1, 2):
        model = deepspeed_(stage, False)
        figures[f"stage {stage}"] = distance(model, expected.model)
        figures[f"evaluation {stage}"] = model.evaluation_error
        figures[f"naive {stage}"] = distance(deepspeed_(stage, True), expected.model)
        control = deepspeed_(stage, False, level=None)
        figures[f"control {stage}"] = distance(control, plain.model)
    figures["two groups"] = distance(deepspeed_(1, False, groups=2), expected.model)
    figures["clipped"] = distance(deepspeed_(2, False, clipping=0.2), clipped.model)
    figures["naive clipped"] = distance(deepspeed_(2, True, clipping=0.2), clipped.model)
    moving = Oracle(WARMUP, order=order, dtype=torch.float32)
    assert moving.n_flooded > 0
    figures["moving"] = distance(deepspeed_(2, False, level=WARMUP), moving.model)
    for stage in (0, 2):  # 1 differs from 2 in what its gradients are, not in what is saved
        options = {"level": WARMUP, "folder": os.path.join(folder, f"stage{stage}")}
        deepspeed_(stage, False, **options)
        resumed = deepspeed_(stage, False, **options, resume=True)
        figures[f"resumed {stage}"] = distance(resumed, moving.model)
    resumed = deepspeed_(2, False, **options, resume=False)
    figures["naive resumed"] = distance(resumed, moving.model)
    try:
        deepspeed_(3, False)
    except ValueError as error:
        figures["stage 3"] = float("ZeRO 3" in str(error))
    return figures


def main(folder, framework):
    torch.set_num_threads(1)
    kinds = {
        "accelerate": accelerate_figures,
        "fabric": fabric_figures,
        "deepspeed": partial(deepspeed_figures, folder),
    }
    figures = kinds[framework]()
    if torch.distributed.get_rank() == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
