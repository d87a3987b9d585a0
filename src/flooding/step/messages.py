"""Errors and warnings of a ``FloodStep`` that are longer than the code around them."""

__all__ = [
    "DROPPED",
    "FOREIGN",
    "LOSS_AFTER_FLIP",
    "NEEDS_ONE_SLOPE",
    "NO_COPY",
    "NO_LOSS",
    "REPLACED",
    "REPLACES",
    "SEVERAL_LOSSES",
    "SOME_RANKS",
]

# An attached step was copied.
NO_COPY = (
    "A FloodStep belongs to its optimiser and cannot be copied or pickled. Build a new one on the "
    "copied optimiser: new.load_state_dict(old.state_dict()) carries its state over."
)
# A step was taken without a watched loss.
NO_LOSS = (
    "A flooded step needs its loss, but none was noted since the last step or zero_grad(). Write "
    "loss = flood_step(loss) before loss.backward(), or take flooding off with flood_step.remove()."
)
# A loss came after the gradients were flipped.
LOSS_AFTER_FLIP = (
    "A step is flipped once, after its last backward, but a watched loss came after apply(). Call "
    "apply() later, keep penalties unwatched, and drop a skipped step with optimizer.zero_grad()."
)

# Only some ranks watched a loss.
SOME_RANKS = (
    "Every rank must watch a loss in every step, but {missing} of {ranks} ranks have none. "
    "Pipeline parallelism, where only the last ranks have the loss, is not supported: train with "
    "DDP or FSDP2."
)
# Several losses ran backward at once.
SEVERAL_LOSSES = (
    "Several watched losses took part in one backward. Their mean, weighted by the factors of "
    "their gradients, is compared with the level, and not their sum. If they are terms of one "
    "loss, watch the sum: loss = flood_step(a + b). If they are micro-batches of one loss, ignore "
    "this."
)
# A watched loss never ran backward.
DROPPED = (
    "Again and again the gradients of watched losses were cleared, or used by somebody else, "
    "without a flooded step. Only step() of the optimiser given to FloodStep floods: is another "
    "one, a copy, or a method of another name called, or zero_grad() before step()?"
)
# Gradients came from losses that were not watched.
FOREIGN = (
    "The watched loss reaches parameters ({count} tensors) that {name} updates without a "
    "FloodStep: they descend also below the level. Build one FloodStep on each optimiser and watch "
    "the loss by each, loss = first(second(loss)). Ignore this if they are meant to descend."
)
# A method that has no single slope.
NEEDS_ONE_SLOPE = (
    "per_microbatch decides in every backward, but {name} needs one slope for all passes of a "
    "step. Use per_microbatch=False."
)
# The step was replaced by another one.
REPLACED = (
    "This FloodStep was replaced by one that was built later on the same {name}. Use the later one."
)
# The step replaces an earlier one.
REPLACES = (
    "This {name} has had a FloodStep with level {level}, which the new one replaces. If this is "
    "meant, call remove() on the old one first."
)
