"""The built-in losses, a module for each family, and the registry with all of them in it.

Whoever looks a loss up by its name imports the look-up from here: then the built-in ones are known to it.
"""

from prefopt.contract.registry import load_plugin, loss_class, loss_names, make_loss
from prefopt.losses.adaptive import AlphaDPO, BetaDPO
from prefopt.losses.balance import BPO, C2DPO, DPOShift, MinorDPO
from prefopt.losses.controls import SFT, FlippedDPO, Noop
from prefopt.losses.coupled import AOT, BCO, KTO, AOTUnpaired, DrDPO
from prefopt.losses.divergence import FDPO, HDPO, ChiPO
from prefopt.losses.dpo import DPO, ConservativeDPO, LengthNormalizedDPO, RobustDPO
from prefopt.losses.groups import GRPO, RLOO, InfoNCA, PlackettLuceDPO
from prefopt.losses.ipo import IPO, IPOSum
from prefopt.losses.likelihood import ASFT, Unlikelihood
from prefopt.losses.links import EXO, GPO, DiscoPOP, FocalPO, Hinge
from prefopt.losses.margins import ODPO, DPOPositive, LengthRegularizedDPO
from prefopt.losses.mixtures import MPO, Mix
from prefopt.losses.nll import CPO, ORPO, RPO, CPOSimPO, SLiC
from prefopt.losses.pointwise import NCA, APODown, APOZero
from prefopt.losses.regression import SPPO, CalDPO, RewardAwareRPO, SoftSPPO
from prefopt.losses.simpo import AlphaPO, SimPER, SimPO
from prefopt.losses.tokens import LDDPO, TDPO, TDPO1, WPO, SamPO

__all__ = [
    "AOT",
    "ASFT",
    "BCO",
    "BPO",
    "C2DPO",
    "CPO",
    "DPO",
    "EXO",
    "FDPO",
    "GPO",
    "GRPO",
    "HDPO",
    "IPO",
    "KTO",
    "LDDPO",
    "MPO",
    "NCA",
    "ODPO",
    "ORPO",
    "RLOO",
    "RPO",
    "SFT",
    "SPPO",
    "TDPO",
    "TDPO1",
    "WPO",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "AlphaDPO",
    "AlphaPO",
    "BetaDPO",
    "CPOSimPO",
    "CalDPO",
    "ChiPO",
    "ConservativeDPO",
    "DPOPositive",
    "DPOShift",
    "DiscoPOP",
    "DrDPO",
    "FlippedDPO",
    "FocalPO",
    "Hinge",
    "IPOSum",
    "InfoNCA",
    "LengthNormalizedDPO",
    "LengthRegularizedDPO",
    "MinorDPO",
    "Mix",
    "Noop",
    "PlackettLuceDPO",
    "RewardAwareRPO",
    "RobustDPO",
    "SLiC",
    "SamPO",
    "SimPER",
    "SimPO",
    "SoftSPPO",
    "Unlikelihood",
    "load_plugin",
    "loss_class",
    "loss_names",
    "make_loss",
]
