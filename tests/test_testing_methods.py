"""``check_method`` accepts the library's methods and names the rule that a broken one breaks."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from flooding.functional import flood
from flooding.methods import Method
from flooding.testing import check_method


class Base(Method):
    """A correct method, of which the others break one rule each."""

    def __call__(self, loss, level):
        return torch.where(loss > level, loss, 2 * level - loss)


class Ignorant(Base):
    """Floods where there is no level yet."""

    def __call__(self, loss, level):
        return flood(loss, level)


class Detached(Base):
    def __call__(self, loss, level):
        return super().__call__(loss.detach(), level)


class Random(Base):
    def __call__(self, loss, level):
        return torch.where(loss > level, loss + torch.rand(()), loss)


class InPlace(Base):
    def __call__(self, loss, level):
        with torch.no_grad():
            loss += 1
        return loss


class Infinite(Base):
    def __call__(self, loss, level):
        return torch.where(level == -torch.inf, loss, (loss - level).log())


class Promising(Base):
    """Says that the gradient above the level is that of the loss, but it is twice that."""

    shares_prefix = True

    def __call__(self, loss, level):
        return torch.where((loss > level) & (level != -torch.inf), 2 * loss - level, loss)


class WrongSlope(Base):
    has_slope = True

    def slope(self, loss, level):
        return torch.ones(())


@dataclass(frozen=True)
class PerExample(Base):
    reduction: ClassVar = "none"


def local():
    class Local(Base):
        pass

    return Local()


@pytest.mark.parametrize("method", [Base(), PerExample()])
def test_a_correct_method_passes(method):
    check_method(method)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Ignorant(), "a level of -inf must leave the loss"),
        (Detached(), "keep the graph of the loss"),
        (Random(), "the same bits again"),
        (InPlace(), "must not change the loss"),
        (Infinite(), "the objective must be finite"),
        (Promising(), "with shares_prefix the gradient above the level"),
        (WrongSlope(), "slope must be the factor of the gradient"),
        (local(), "must survive deepcopy and pickle"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_a_broken_rule_is_named(method, message):
    with pytest.raises(AssertionError, match=message):
        check_method(method)


def test_what_is_no_method_is_refused():
    with pytest.raises(TypeError, match=r"got <class .*Base.>. Build it first: Base"):
        check_method(Base)
    with pytest.raises(TypeError, match="must inherit from flooding"):
        check_method(lambda loss, level: loss)
