"""Federated fine-tuning of vision transformers on encrypted images.

A Python program runs an experiment and uses the trained model with the functions and classes of
this package. The functions and classes are imported only when they are used, because torch, Flower
and Ray take seconds to import.

    import fl_vitlora as fv

    run = fv.run({"clients": 20, "rounds": 5})
    print(run.accuracy, run.history[-1]["uplink_bytes"])
    run.predict("photos/").write("photos.csv")
    later = fv.load_run(run.folder)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_vitlora.library.callbacks import Callback as Callback
    from fl_vitlora.library.callbacks import EarlyStopping as EarlyStopping
    from fl_vitlora.library.comparing import FinishedComparison as FinishedComparison
    from fl_vitlora.library.comparing import compare as compare
    from fl_vitlora.library.comparing import load_comparison as load_comparison
    from fl_vitlora.library.finished import FinishedRun as FinishedRun
    from fl_vitlora.library.finished import load_run as load_run
    from fl_vitlora.library.predictions import Predictions as Predictions
    from fl_vitlora.library.running import resume as resume
    from fl_vitlora.library.running import run as run
    from fl_vitlora.library.trackers import MLflow as MLflow
    from fl_vitlora.library.trackers import TensorBoard as TensorBoard
    from fl_vitlora.library.trackers import WandB as WandB

__version__ = "0.2.0"

_PLACES = {
    "Callback": "callbacks",
    "EarlyStopping": "callbacks",
    "FinishedComparison": "comparing",
    "FinishedRun": "finished",
    "MLflow": "trackers",
    "Predictions": "predictions",
    "TensorBoard": "trackers",
    "WandB": "trackers",
    "compare": "comparing",
    "load_comparison": "comparing",
    "load_run": "finished",
    "resume": "running",
    "run": "running",
}
__all__ = [
    "Callback",
    "EarlyStopping",
    "FinishedComparison",
    "FinishedRun",
    "MLflow",
    "Predictions",
    "TensorBoard",
    "WandB",
    "compare",
    "load_comparison",
    "load_run",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    """Imports a name of the library when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.library.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    """Returns the names of this module, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
