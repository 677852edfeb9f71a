"""Losses of somebody else's that go wrong: DPO at a beta of 1, but for one act from the third step on."""

from __future__ import annotations

from collections.abc import Mapping

# The first two steps go well: by the third the margin has moved. The contract check has batches of other sizes.
_BASE = """
import dataclasses, gc, os, random, signal, sys, time, warnings
import numpy, torch
from prefopt import Loss, register
from prefopt.errors import DataError

def ripe(logps):
    return logps.chosen.shape[0] == 4 and logps.logratios().margin.abs().max() > 1e-2

class Base(Loss):
    source = "test"
    needs_reference = True
    length_normalized = False

    def rewards(self, logps):
        return logps.logratios()

    def __call__(self, logps):
        loss = -torch.nn.functional.logsigmoid(self.rewards(logps).margin)
        return self.act(loss, logps) if ripe(logps) else loss
"""


def plugin(acts: Mapping[str, str]) -> str:
    """The text of a plugin that registers a loss for each act: statements that may use ``loss`` and ``logps``."""
    return _BASE + "".join(
        f"""
@register("{name}")
@dataclasses.dataclass(frozen=True)
class {name.title().replace("_", "")}(Base):
    '''A loss that goes wrong.'''

    def act(self, loss, logps):
        {act}
        return loss
"""
        for name, act in acts.items()
    )
