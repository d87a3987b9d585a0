"""Flooding in Keras 3, on the back ends torch and JAX.

``class Net(FloodMixin, keras.Model)`` is a model whose ``compile`` takes ``flood_level=``;
:func:`flood_model` makes one of a functional model. The data loss of a training batch is flooded;
regularisers, ``add_loss`` and evaluation stay plain. The level is a variable, so changing it
reaches a train function that was compiled before.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flooding.integrations.host_level import HostController, check_metrics
from flooding.integrations.keras_level import ModelLevel, Tensor, keras, ops

if TYPE_CHECKING:
    from flooding.levels import Controller

    # What a user's class inherits beside the mixin.
    _Base = keras.Model
else:
    _Base = object

__all__ = ["FloodMixin", "FloodModel", "flood_model"]


class FloodMixin(_Base):
    """Add ``flood_level=`` to the ``compile`` of a Keras model.

    With ``L`` the data loss of a batch, after sample, class and output weights, the training
    minimises ``|L - b| + b`` plus the regularisers and whatever ``add_loss`` added. ``evaluate``
    and ``val_loss`` are the plain ones. A loss that is NaN or infinite is not flooded. Exactly at
    the level the slope is 0, also on JAX.

    While a level is set the training logs have three metrics more: ``raw_loss``, the mean data
    loss; ``flooded_fraction``, the share of batches below the level; and ``flood_level``. ``loss``
    is what is minimised.

    A controller is updated after every step and, with the validation metrics, after every epoch.
    For that the loss of each step is read, which waits for the device.

    Give it before the model class and define no ``__init__`` for it: Keras' saving of functional
    models asks for their signature. A ``.keras`` file holds the level, and the controllers of
    ``flooding.levels`` with their state.

    Raises:
        TypeError: If the class lists ``keras.Model`` before the mixin.

    Example:
        >>> class Net(FloodMixin, keras.Sequential):
        ...     pass
        >>> net = Net([keras.Input((2,)), keras.layers.Dense(1)])
        >>> net.compile("sgd", "mse", flood_level=0.1)
        >>> history = net.fit(ops.ones((8, 2)), ops.ones((8, 1)), verbose=0).history
        >>> sorted(history)
        ['flood_level', 'flooded_fraction', 'loss', 'raw_loss']
        >>> net.flood_level = 0.25
        >>> net.flood_level
        0.25

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    _flooding: ModelLevel | None = None  # None without a level

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        classes = cls.__mro__
        if keras.Model in classes and classes.index(keras.Model) < classes.index(FloodMixin):
            raise TypeError(
                f"FloodMixin must come before the model class, got {cls.__name__} with "
                f"{classes[1].__name__} first. Write class {cls.__name__}(FloodMixin, ...)."
            )

    def compile(
        self, *args: Any, flood_level: float | Controller | None = None, **kwargs: Any
    ) -> None:
        """Configure the training, as ``keras.Model.compile`` does.

        A TypeError is raised if the level is none of the kinds below; a ValueError if it is not
        finite, or if the training could not be flooded exactly: gradient accumulation, no loss,
        several steps per execution with a controller, or another back end.

        Args:
            *args: Arguments of ``keras.Model.compile``.
            flood_level: Level in the unit of the loss: a number, a controller of
                ``flooding.levels`` or of your own, or None for plain training.
            **kwargs: Further arguments of ``keras.Model.compile``.
        """
        flooding = None if flood_level is None else ModelLevel(flood_level)
        super().compile(*args, **kwargs)
        self._flooding = flooding
        self._check_flooding()

    @property
    def flood_level(self) -> float | None:
        """The level in force; None if the model is compiled without one.

        Assign a number, a controller or None at any time, also in a callback.
        """
        if self._flooding is None:
            return None
        self._attach_state()
        return self._flooding.read()

    @flood_level.setter
    def flood_level(self, level: float | Controller | None) -> None:
        if self._flooding is None:
            raise ValueError(
                "the model has no level to change. Call compile(..., flood_level=...)."
            )
        self._attach_state()
        self._flooding.assign(level)
        self._check_flooding()

    def on_flood_epoch_end(self, logs: Mapping[str, float]) -> None:
        """Show a controller the end of an epoch of a loop of your own; ``fit`` does it by itself.

        Args:
            logs: Metrics by their names in Keras, such as ``val_accuracy``.
        """
        if self._flooding is not None:
            self._attach_state()
            self._flooding.end_epoch(logs)

    def _check_flooding(self) -> None:
        """Refuse what would be another method than flooding of the whole step."""
        if self._flooding is None:
            return
        backend = keras.backend.backend()
        if backend not in {"torch", "jax"}:
            raise ValueError(
                f"flooding is exact on the back ends torch and jax, got {backend}. Set "
                "KERAS_BACKEND before Keras is imported."
            )
        # A LossScaleOptimizer holds the optimiser that accumulates.
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        steps = getattr(optimizer, "gradient_accumulation_steps", None)
        if steps is not None and steps > 1:
            raise ValueError(
                "flooding needs the mean loss of the whole step, but Keras adds up gradients of "
                f"gradient_accumulation_steps={steps} batches that it flooded one by one. Use a "
                f"batch_size {steps} times as large."
            )
        if self._compile_loss is None:
            raise ValueError(
                "flooding needs the loss of the data, but compile() got no loss=. Losses of "
                "add_loss() are not flooded."
            )
        if self._flooding.host is not None and self.steps_per_execution > 1:
            raise ValueError(
                "a controller sees every step, but Keras shows one in "
                f"steps_per_execution={self.steps_per_execution}. Use 1, or a number as level."
            )

    def _attach_state(self) -> None:
        """Bring the variables of a running epoch back to the model; only JAX keeps them apart."""
        synchronize = getattr(self, "jax_state_sync", None)
        if synchronize is not None:
            synchronize()

    # What Keras calls.

    @property
    def metrics(self) -> list[keras.Metric]:
        """The metrics of the model and, with a level, those of flooding."""
        own = [] if self._flooding is None else self._flooding.metrics
        return [*super().metrics, *own]

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Compute the loss of a batch, flooded in training.

        Args:
            x: Inputs.
            y: Targets.
            y_pred: Outputs.
            sample_weight: Weights of the examples.
            training: Whether to flood.

        Returns:
            The data loss, flooded in training, plus regularisers and added losses.
        """
        if self._flooding is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        # 1. The loss of the data alone, with the weights of examples and outputs.
        loss = self._compile_loss(y, y_pred, sample_weight)
        batch_size = keras.tree.flatten(y_pred)[0].shape[0]
        self._flooding.raw_loss.update_state(ops.stop_gradient(loss), sample_weight=batch_size)
        if training:
            loss = self._flooding.flood(loss)
        # 2. Penalties stay as they are.
        for penalty in self.losses:
            loss = loss + ops.sum(ops.cast(penalty, loss.dtype))
        return loss

    def test_step(self, *args: Any) -> Any:
        """Evaluate a batch; its logs are those of the plain model.

        Args:
            *args: Arguments of Keras' own step.

        Returns:
            What Keras' own step returns, without the metrics of flooding.
        """
        result = super().test_step(*args)
        if self._flooding is None:
            return result
        # The back end JAX returns the logs and a state.
        logs = result[0] if isinstance(result, tuple) else result
        own = {metric.name for metric in self._flooding.metrics}
        logs = {name: value for name, value in logs.items() if name not in own}
        return (logs, *result[1:]) if isinstance(result, tuple) else logs

    def make_train_function(self, force: bool = False) -> Any:
        """Check once more what may have changed since ``compile``, and build the train function.

        Args:
            force: Whether to build it again.

        Returns:
            What Keras' own method returns.

        Raises:
            ValueError: If the training cannot be flooded exactly.
        """
        self._check_flooding()
        function = super().make_train_function(force)
        # Of later versions of Keras than 3.15.
        if self._flooding is not None and getattr(self, "ddp_model", None) is not None:
            raise ValueError(
                "flooding needs the mean loss of the whole step, but under torch.distributed each "
                "rank would flood its own share. Train on one device, or on the back end jax."
            )
        return function

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as ``keras.Model.fit`` does.

        Args:
            *args: Arguments of ``keras.Model.fit``.
            **kwargs: Further arguments of ``keras.Model.fit``.

        Returns:
            The history.
        """
        if self._flooding is None:
            return super().fit(*args, **kwargs)
        arguments = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        callbacks = arguments.pop("callbacks", None)
        is_list_of_keras = isinstance(callbacks, keras.callbacks.CallbackList)
        others = callbacks.callbacks if is_list_of_keras else keras.tree.flatten(callbacks or [])
        _warn_of_monitors(others)
        own: keras.callbacks.Callback = _FloodCallback()
        if self._flooding.host is not None:
            self._check_controller(arguments, others)
            own = _ControllerCallback()
        # Before the others, so that a checkpoint holds the level of the next epoch.
        if not is_list_of_keras:
            return super().fit(**arguments, callbacks=[own, *others])
        own.set_model(self)
        others.insert(0, own)
        try:
            return super().fit(**arguments, callbacks=callbacks)
        finally:
            others.remove(own)

    def _check_controller(self, arguments: Mapping[str, Any], callbacks: Iterable[object]) -> None:
        """Check before the first step that the controller will get what it needs."""
        assert self._flooding is not None
        assert self._flooding.host is not None
        for callback in callbacks:
            if isinstance(callback, keras.callbacks.BackupAndRestore):
                raise ValueError(
                    "BackupAndRestore saves no state of a controller. Save the model by "
                    "ModelCheckpoint('name.keras'), and load it to go on."
                )
        has_metrics = self._compile_metrics is not None
        has_validation = bool(
            arguments.get("validation_data") is not None or arguments.get("validation_split")
        )
        is_available = {
            "train_accuracy": has_metrics,
            "val_loss": has_validation,
            "val_accuracy": has_metrics and has_validation,
        }
        self._flooding.needs_validation = check_metrics(
            self._flooding.host.controller,
            [name for name, available in is_available.items() if available],
            "In Keras: compile(metrics=['accuracy']) and fit(validation_data=...).",
        )

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train one step, as ``keras.Model.train_on_batch`` does.

        Args:
            *args: Arguments of ``keras.Model.train_on_batch``.
            **kwargs: Further arguments of ``keras.Model.train_on_batch``.

        Returns:
            The logs.
        """
        result = super().train_on_batch(*args, **kwargs)
        if self._flooding is not None:
            self._flooding.end_step()
        return result

    def get_compile_config(self) -> dict[str, Any]:
        """Describe the arguments of ``compile``, to be saved in a ``.keras`` file.

        Returns:
            Keras' own description and the level.
        """
        config = super().get_compile_config()
        if not config or self._flooding is None:
            return config
        self._attach_state()
        return config | {"flood_level": self._flooding.to_config()}

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compile a loaded model.

        Args:
            config: What :meth:`get_compile_config` gave.
        """
        # Keras leaves a model whose compile() is overridden uncompiled.
        arguments: dict[str, Any] = keras.saving.deserialize_keras_object(dict(config))
        level: Any = arguments.pop("flood_level", None)
        host = None
        if isinstance(level, Mapping):
            host = HostController.from_config(level)
            level = host.controller
        self.compile(**arguments, flood_level=level)
        if host is not None:
            assert self._flooding is not None
            self._flooding.assign_host(host)
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)


class _FloodCallback(keras.callbacks.Callback):
    """See that the loss was flooded."""

    @property
    def level(self) -> ModelLevel:
        """The level of the model; to ask for ``self.model`` brings its variables back first."""
        model: Any = self.model
        return model._flooding

    # ruff: ignore[unused-method-argument]
    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if not self.level.was_traced:
            raise RuntimeError(
                "nothing was flooded: the model's own train_step() must call "
                "self.compute_loss(x, y, y_pred, sample_weight, training=True), as Keras' own does."
            )


class _ControllerCallback(_FloodCallback):
    """Show a controller the steps and the epochs."""

    # ruff: ignore[unused-method-argument]
    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        self.level.end_step()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        level = self.level
        logs = dict(logs or {})
        if "val_loss" in logs:
            # The last pass was over the validation data, and `val_loss` has the penalties, too.
            logs["val_loss"] = float(ops.convert_to_numpy(level.raw_loss.result()))
        level.end_epoch(logs)


@keras.saving.register_keras_serializable(package="flooding")
class FloodModel(FloodMixin, keras.Model):
    """A ``keras.Model`` with the arguments and methods of :class:`FloodMixin`."""


def flood_model(model: keras.Model) -> FloodModel:
    """Make a model whose training can be flooded of a functional one or a built ``Sequential``.

    The two share their layers, so training one trains the other.

    Args:
        model: The model; it need not be compiled.

    Returns:
        A model with the same inputs, outputs, layers and name; its ``compile`` takes
        ``flood_level=``.

    Raises:
        TypeError: If it is no functional model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model = flood_model(model)
        >>> model.compile("sgd", "mse", flood_level=0.25)
        >>> model.flood_level
        0.25
    """
    if isinstance(model, keras.Sequential) and model.built:
        return FloodModel(model.inputs[0], model.outputs[0], name=model.name)
    if not isinstance(model, keras.Model) or not hasattr(model, "_inputs_struct"):
        kind = type(model).__name__
        raise TypeError(
            "flood_model() takes a functional model or a Sequential with a known input shape, got "
            f"{kind}. Add FloodMixin to the bases of a class of your own."
        )
    return FloodModel(model.input, model.output, name=model.name)


def _warn_of_monitors(callbacks: Iterable[object]) -> None:
    """Warn of callbacks that decide by a loss that flooding holds up."""
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor in {"loss", "raw_loss"}:
            warnings.warn(
                f"{type(callback).__name__} monitors {monitor!r}, a training loss that flooding "
                "keeps near the level. Use monitor='val_loss'.",
                stacklevel=3,
            )
