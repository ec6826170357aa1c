"""The imports that take seconds; every worker process makes them as soon as it exists.

Ray is told to import this module in each worker it starts, so that workers get ready beside the
driver's own preparations and not only when the first message comes.
"""

import gc
import importlib
from contextlib import suppress

import torch

import fl_vitlora.flower.client.app  # noqa: F401
from fl_vitlora.models.backbone import import_timm

import_timm()
with suppress(ModuleNotFoundError):
    # The folder beside this package: Ray puts the current folder first on the path later.
    importlib.import_module("strategies")
torch.set_num_threads(1)  # one worker, one core
gc.freeze()  # what was imported stays; no need to look through it again and again for garbage
