"""The options of a loss: its function of torch, reduction, ignored target and class weights.

:func:`loss_options` is the one place that recognises a loss, whatever it is wrapped in. Of a loss
that is not torch's own only the attributes, the arguments and the shape of its value are known.
"""

from __future__ import annotations

import copy
import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]

__all__ = [
    "BINARY",
    "CLASSES",
    "ELEMENTWISE",
    "LossOptions",
    "call_weight",
    "check_class_weight",
    "example_weight",
    "is_class_loss",
    "is_elementwise_loss",
    "loss_name",
    "loss_options",
    "reduction_word",
    "signature_reduction",
    "unreduced",
    "unwrap",
]

Loss: TypeAlias = Callable[..., Tensor]
Options: TypeAlias = dict[str, Any]  # attributes or arguments of a loss, by name
Args: TypeAlias = tuple[object, ...]

# The function that each loss module of torch computes.
_FUNCTIONS: dict[type[nn.Module], Loss] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
}
if hasattr(F, "linear_cross_entropy"):  # since torch 2.13
    _FUNCTIONS[nn.LinearCrossEntropyLoss] = F.linear_cross_entropy

_PARAMETERS = {
    function: tuple(inspect.signature(function).parameters) for function in _FUNCTIONS.values()
}
_OPTION_NAMES = ("reduction", "weight", "ignore_index", "label_smoothing", "pos_weight")

# The options of each function, that is the attributes of its module.
_OPTIONS_OF: dict[Loss | None, tuple[str, ...]] = {None: _OPTION_NAMES}
for _function, _names in _PARAMETERS.items():
    _OPTIONS_OF[_function] = tuple(name for name in _OPTION_NAMES if name in _names)

# Losses of class indices: their mean divides by the class weights of the examples that are not
# ignored.
CLASSES = tuple(function for function, names in _PARAMETERS.items() if "ignore_index" in names)
# Losses of probabilities and of logits of two classes.
BINARY = (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)

# Losses of torch that take an output for each class.
_CLASS_LOSSES: dict[type[nn.Module], Loss] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MultiMarginLoss: F.multi_margin_loss,
}

# Losses of torch that compare outputs with targets one by one. Torch broadcasts some of them, with
# a warning at most.
_ELEMENTWISE_LOSSES: dict[type[nn.Module], Loss] = {
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.SoftMarginLoss: F.soft_margin_loss,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
    nn.HingeEmbeddingLoss: F.hinge_embedding_loss,
    nn.KLDivLoss: F.kl_div,
}
# Losses that act on each element.
ELEMENTWISE = tuple(_ELEMENTWISE_LOSSES.values())


class LossOptions(NamedTuple):
    """Options of a loss, and the input and target of one call of it.

    Args:
        function: The function of torch that computes the loss; None for a loss of the user's own.
        reduction: The reduction in lower case; None where it is unknown and the shape decides.
        weight: Class weights, or the weight of each element.
        ignore_index: The target that is ignored, or None.
        label_smoothing: Share spread evenly over all classes; 0 without smoothing.
        pos_weight: Weights of the positive class in a binary loss.
        input: Outputs of the model, as passed; None without a call.
        target: Targets, as passed; None without a call.
    """

    function: Loss | None
    reduction: str | None
    weight: Tensor | None
    ignore_index: int | None
    label_smoothing: float
    pos_weight: Tensor | None
    input: object
    target: object


def unwrap(loss: Any) -> tuple[Any, Args, Options]:
    """Find the loss inside partials, wrappers, ``torch.compile`` and a bound ``forward``.

    Args:
        loss: A loss.

    Returns:
        The module or function inside, and the positional and keyword arguments that partials bind.
    """
    args: Args = ()
    keywords: Options = {}
    while True:
        # A partial of a partial: the outer arguments come last and win.
        if isinstance(loss, functools.partial):
            args, keywords = loss.args + args, {**loss.keywords, **keywords}
            loss = loss.func
        elif isinstance(loss, nn.Module):
            if "_orig_mod" not in loss._modules:  # torch.compile keeps the module there
                return loss, args, keywords
            loss = loss._modules["_orig_mod"]
        elif hasattr(loss, "__wrapped__"):
            loss = loss.__wrapped__
        elif isinstance(getattr(loss, "__self__", None), nn.Module) and loss.__name__ == "forward":
            loss = loss.__self__
        else:
            return loss, args, keywords


def _torch_function(core: object) -> Loss | None:
    """Give the function of torch that a module or function computes; None for a user's own."""
    if not isinstance(core, nn.Module):
        return next((function for function in _PARAMETERS if function is core), None)
    for module_class, function in _FUNCTIONS.items():
        if isinstance(core, module_class):
            has_own_forward = type(core).forward is not module_class.forward
            return None if has_own_forward or "forward" in vars(core) else function
    return None


def _unwrap_partials(loss: object) -> object:
    """Find the loss inside partials. A wrapper of the user's own may change the arguments."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def _is_one_of(loss: object, losses: Mapping[type[nn.Module], Loss]) -> bool:
    """Tell whether a loss is one of torch's, not a subclass that computes something else."""
    core = _unwrap_partials(loss)
    if not isinstance(core, nn.Module):
        return any(core is function for function in losses.values())
    for module_class in losses:
        if isinstance(core, module_class) and type(core).forward is module_class.forward:
            return True
    return False


def is_class_loss(loss: object) -> bool:
    """Tell whether a loss is one of torch's that takes an output for each class.

    Args:
        loss: The loss.

    Returns:
        Whether it is.
    """
    return _is_one_of(loss, _CLASS_LOSSES)


def is_elementwise_loss(loss: object) -> bool:
    """Tell whether a loss is one of torch's that compares outputs with targets one by one.

    Args:
        loss: The loss.

    Returns:
        Whether it is.
    """
    return _is_one_of(loss, _ELEMENTWISE_LOSSES)


def loss_name(loss: object) -> str:
    """Give the name of a loss for a message.

    Args:
        loss: The loss.

    Returns:
        The name of the function or of the module's class.
    """
    core = _unwrap_partials(loss)
    class_name = type(core).__name__
    return class_name if isinstance(core, nn.Module) else getattr(core, "__name__", class_name)


def loss_options(loss: object, args: Args = (), keywords: Options | None = None) -> LossOptions:
    """Read the options of a loss: a module, a function, or either one wrapped.

    A subclass with a ``forward`` of its own is a loss of your own: its ``weight`` is read, but what
    its mean divides by is unknown.

    Args:
        loss: A loss.
        args: Positional arguments of a call of it.
        keywords: Keyword arguments of that call. They win over bound arguments, and those over
            attributes.

    Returns:
        The options.
    """
    core, bound_args, bound_keywords = unwrap(loss)
    function = _torch_function(core)
    # A module has its options as attributes, a function of torch as arguments.
    options: Options
    if isinstance(core, nn.Module) or function is None:
        options = {name: getattr(core, name, None) for name in _OPTIONS_OF[function]}
        options.update(zip(("input", "target"), args, strict=False))
    else:
        options = dict(zip(_PARAMETERS[function], bound_args + args, strict=False))
    options.update(bound_keywords)
    options.update(keywords or {})
    index = options.get("ignore_index")
    if index is None:
        index = -100 if function in CLASSES else _defaults(core).get("ignore_index")
    return LossOptions(
        function=function,
        reduction=reduction_word(options),
        weight=options.get("weight"),
        ignore_index=index if isinstance(index, int) else None,
        label_smoothing=options.get("label_smoothing") or 0.0,
        pos_weight=options.get("pos_weight"),
        input=options.get("input"),
        target=options.get("target"),
    )


def _defaults(function: object) -> Options:
    """Read the defaults of a function of the user's own."""
    # Not inspect.signature, which is too slow for every batch.
    if not isinstance(function, FunctionType):
        return {}
    # The last arguments have the defaults; those after * have a dictionary of their own.
    code, values = function.__code__, function.__defaults__ or ()
    optional = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return {**dict(zip(optional, values, strict=True)), **(function.__kwdefaults__ or {})}


def reduction_word(options: Mapping[str, object]) -> str | None:
    """Read the reduction among the arguments or attributes of a loss.

    Args:
        options: Arguments or attributes by name. torch's old ``size_average`` and ``reduce`` win,
            as in torch.

    Returns:
        The word in lower case, for a member of an Enum its value or name; None where there is none.
    """
    average, reduce = options.get("size_average"), options.get("reduce")
    if average is not None or reduce is not None:
        if reduce is False:
            return "none"
        return "sum" if average is False else "mean"
    word = options.get("reduction")
    if isinstance(word, enum.Enum) and isinstance(word.value, str):
        word = word.value
    elif isinstance(word, enum.Enum):
        word = word.name
    if isinstance(word, str):
        return word.lower()
    return None


def signature_reduction(loss: object) -> str | None:
    """Read the reduction of a loss from its options, or else from its signature's defaults.

    Args:
        loss: A loss.

    Returns:
        The word in lower case, or None where there is none.
    """
    word = loss_options(loss).reduction
    if word is not None:
        return word
    core, args, keywords = unwrap(loss)
    function = core
    if isinstance(core, nn.Module):
        function = core.forward
    try:
        call = inspect.signature(function).bind_partial(*args, **keywords)
    except (TypeError, ValueError):  # a builtin without a signature, or arguments that do not fit
        return None
    call.apply_defaults()
    return reduction_word(call.arguments)


def check_class_weight(loss: object) -> None:
    """Check that the divisor of a loss's mean is known, for methods on each example.

    Args:
        loss: A loss.

    Raises:
        ValueError: If it is a subclass of cross-entropy or NLL with class weights and a ``forward``
            of its own.
    """
    options = loss_options(loss)
    core = unwrap(loss)[0]
    has_weight = isinstance(core, (nn.CrossEntropyLoss, nn.NLLLoss)) and options.weight is not None
    if options.function is None and has_weight:
        raise ValueError(
            f"class weights need the forward of torch, got {type(core).__name__} with one of its "
            "own, so what its mean divides by is unknown. Call objective(losses, level, method, "
            "weight) instead."
        )


def example_weight(criterion: object, target: Tensor, loss: Tensor | None = None) -> Tensor | None:
    """Give the weight of each loss in the mean of a criterion.

    It is 0 for ``ignore_index`` and the class weight for the others.

    Args:
        criterion: A loss: a module, a function, or a partial of one.
        target: Its target.
        loss: Its raw losses. A criterion that is not torch's own may give them another shape than
            its target has; then nothing is known of their weights.

    Returns:
        Weights of the shape of ``target``, or None where the mean is the plain one.
    """
    return call_weight(loss_options(criterion)._replace(target=target), loss)


def call_weight(call: LossOptions, loss: Tensor | None) -> Tensor | None:
    """Give the weight of each loss of one call, as :func:`example_weight` does.

    Args:
        call: Options of the loss, with the target of the call.
        loss: The raw losses.

    Returns:
        Weights of the shape of the target, or None where the mean is the plain one.
    """
    target = call.target
    # Here the weight, if there is one, is that of each element.
    if call.function in (F.mse_loss, F.l1_loss):
        return call.weight
    if call.ignore_index is None or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    if call.function is None and loss is not None and loss.shape != target.shape:
        return None
    target = target.long()  # in uint8 -100 is 156
    valid = target != call.ignore_index
    if call.weight is None or call.function not in CLASSES:
        return valid.to(torch.get_default_dtype())
    index = target.masked_fill(~valid, 0).reshape(-1)
    return call.weight.index_select(0, index).reshape(target.shape) * valid


def unreduced(loss: Loss) -> Loss:
    """Turn a mean loss into the per-example losses it is the mean of.

    Args:
        loss: A torch loss function with a ``reduction`` argument, or a module with a ``reduction``
            attribute.

    Returns:
        A callable ``(outputs, targets) -> losses[batch]``.

    Raises:
        ValueError: If the loss has no reduction to set.
    """
    check_class_weight(loss)
    function, args, options = loss, (), {}
    if isinstance(loss, functools.partial):
        function, args, options = loss.func, loss.args, dict(loss.keywords)
    if isinstance(function, nn.Module):
        function = _copy_without_reduction(unwrap(function)[0], loss)
        options.pop("reduction", None)
    else:
        # The wrapper itself must take the argument, where functools.wraps hides one.
        try:
            signature = inspect.signature(function, follow_wrapped=False)
            signature.bind_partial(*args, reduction="none")
        except (TypeError, ValueError) as error:
            raise ValueError(_NO_REDUCTION.format(loss)) from error
        # torch's old arguments would win over the reduction.
        options.pop("size_average", None)
        options.pop("reduce", None)
        options["reduction"] = "none"
    elementwise = function
    if args or options:
        elementwise = functools.partial(function, *args, **options)
    if signature_reduction(loss) != "batchmean":
        return elementwise
    # "batchmean" is the mean over examples of the sum over their elements.
    return lambda outputs, targets: elementwise(outputs, targets).flatten(1).sum(1)


_NO_REDUCTION = (
    "a per-example method needs a loss with reduction='none', got {}. Give it that argument."
)


def _copy_without_reduction(module: nn.Module, loss: object) -> nn.Module:
    """Copy a module with its reduction set to none, as a string or as a member of its Enum."""
    if not hasattr(module, "reduction"):
        raise ValueError(_NO_REDUCTION.format(loss))
    reduction = getattr(module, "reduction", None)
    none: str | enum.Enum = "none"
    if isinstance(reduction, enum.Enum):
        for member in type(reduction):
            if reduction_word({"reduction": member}) == "none":
                none = member
                break
        else:
            raise ValueError(_NO_REDUCTION.format(loss))
    result = copy.copy(module)
    result.reduction = none  # type: ignore[assignment]
    return result
