"""Checks which settings have changed when an interrupted run is continued."""

from __future__ import annotations

from pathlib import Path

from fl_vitlora.config import Config, differences
from fl_vitlora.errors import UserError

MAY_CHANGE = (  # settings that may change when a run continues, because the result stays the same
    "encryption.key_file",
    "data.storage_keys",
    "model.weights",
    "engine.workers",
    "engine.ray_address",
    "engine.round_timeout",
    "engine.client_timeout",
    "checkpoint_every",
)


def check_same(folder: Path, begun: Config, asked: Config, *, finished: bool) -> None:
    """Raises an error if a setting that influences the result has changed.

    Args:
        folder: The path of the run folder.
        begun: The settings with which the run was started.
        asked: The settings that the user asks for.
        finished: True if the run folder has a result.

    Raises:
        UserError: If a setting differs that is not in `MAY_CHANGE`.
    """
    found = "; ".join(
        f"{path} is {was} in this run, not {now}"
        for path, (was, now) in differences(begun, asked).items()
        if path not in MAY_CHANGE
    )
    if found and finished:
        raise UserError(
            f"--resume {folder}: this run is finished with other settings: {found}; "
            "start a new run with another --out, or remove these settings to see the result"
        )
    if found:
        raise UserError(
            f"--resume {folder}: {found}; remove these settings, because a run can continue "
            f"only with its own settings (you may change: {', '.join(MAY_CHANGE)})"
        )
