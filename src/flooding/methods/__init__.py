"""Methods: what is made of a raw loss and a level. One file each; ``base`` is the protocol."""

from flooding.methods.base import Method
from flooding.methods.flooding import Flooding
from flooding.methods.gradient_penalty import GradientPenalty
from flooding.methods.hinge import Hinge
from flooding.methods.iflood import IFlood
from flooding.methods.objective import flooded_fraction, objective
from flooding.methods.relaxloss import RelaxLoss
from flooding.methods.sam import SAM
from flooding.methods.softad import SoftAD
from flooding.methods.wavebound import EMATeacher, WaveBound

__all__ = [
    "SAM",
    "EMATeacher",
    "Flooding",
    "GradientPenalty",
    "Hinge",
    "IFlood",
    "Method",
    "RelaxLoss",
    "SoftAD",
    "WaveBound",
    "flooded_fraction",
    "objective",
]
