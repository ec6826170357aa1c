"""The imports that take seconds, done by every worker process as soon as it starts.

Ray imports this module in each worker that it starts. So the workers get ready while the driver
still prepares the run, and not only when the first message arrives.
"""

import gc
import importlib
from contextlib import suppress

import torch

import fl_vitlora.flower.client.app  # noqa: F401
from fl_vitlora.models.backbone import import_timm

import_timm()
with suppress(ModuleNotFoundError):
    # The folder beside this package, imported before Ray puts the current folder on the path.
    importlib.import_module("strategies")
torch.set_num_threads(1)  # one worker, one core
gc.freeze()  # the imported objects stay for ever; the garbage collector need not visit them again
