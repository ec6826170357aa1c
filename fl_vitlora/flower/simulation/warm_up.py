"""The imports that take seconds, which every worker process does as soon as it starts.

Ray imports this module in each new worker. So the workers get ready while the main process still
prepares the run. Without this module, a worker would do the imports at its first message.
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
