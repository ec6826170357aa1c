"""Runs the slow imports, which take some seconds, as soon as a worker process starts.

Ray imports this module in each new worker, while the main process still prepares the run. Without
this module, a worker would do the slow imports only when its first message arrives.
"""

import gc
import importlib
from contextlib import suppress

import torch

import fl_vitlora.flower.client.app  # noqa: F401
from fl_vitlora.models.backbone import import_timm

import_timm()
with suppress(ModuleNotFoundError):
    # This imports the folder next to this package, before Ray adds the working directory to the
    # import path.
    importlib.import_module("strategies")
torch.set_num_threads(1)  # each worker uses one core
gc.freeze()  # the imported objects stay for ever, so the garbage collector need not visit them
