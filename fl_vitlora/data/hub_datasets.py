"""Loads data sets of the Hugging Face hub; no other module of this package downloads images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl_vitlora.config import DataConfig
from fl_vitlora.data.pixels import first_line
from fl_vitlora.errors import UserError

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # NAME or OWNER/NAME
PATIENCE = 5.0  # seconds to wait for the hub's first answer


def open_hub(config: DataConfig) -> Mapping[str, Any]:
    """Loads a data set of the hub, or its copy in the cache if the hub cannot be reached.

    Args:
        config: The settings of the data. The settings `data.name`, `data.config` and
            `data.revision` say which data set to load.

    Returns:
        A dictionary from the name of each split to the rows of the split.

    Raises:
        UserError: When the data set cannot be loaded. Without a network, the error is raised after
            a few seconds.
    """
    name = config.name
    if not HUB_NAME.fullmatch(name):
        raise UserError(
            f"data set {name!r}: this folder does not exist; name an existing folder: --dataset "
            "FOLDER"
        )
    import datasets

    # Before version 4, the library `datasets` can execute scripts from the hub. This line forbids
    # the execution of scripts.
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
    try:
        answer = _ask(name, config.revision)
        with _offline(answer is not None):
            found = datasets.load_dataset(name, config.config, revision=config.revision)
    except Exception as error:
        if "onfig name is missing" in str(error) or "BuilderConfig" in str(error):
            reason = " ".join(str(error).split())[:500]
            raise UserError(
                f"data set {name!r}: {reason}; choose a configuration: --set data.config=NAME"
            ) from error
        raise UserError(
            f"data set {name!r} is neither 'digits' nor a local path, and cannot be loaded from "
            f"the Hugging Face hub ({first_line(error)}); to work offline, name a folder: "
            "--dataset FOLDER"
        ) from error
    return dict(found)


def hub_folders() -> list[Path]:
    """Returns the folders in which the library `datasets` stores downloaded files."""
    import datasets
    from huggingface_hub import constants

    return [
        Path(datasets.config.HF_DATASETS_CACHE),
        Path(datasets.config.DOWNLOADED_DATASETS_PATH),
        Path(constants.HF_HUB_CACHE),
    ]


def _ask(name: str, revision: str | None) -> Exception | None:
    """Asks the hub once for a data set.

    The library `datasets` would repeat a failed request for half a minute; this function does not
    repeat a request.

    Returns:
        The error of the request if the hub could not be reached. The result is None if the hub has
        answered, or if the library is set to work offline.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if datasets.config.HF_HUB_OFFLINE:
        return None
    try:
        HfApi().dataset_info(name, revision=revision, timeout=PATIENCE)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
        failure: Exception = error
        return failure
    except Exception as error:
        return error
    return None


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Stops the library `datasets` from asking the hub inside a `with` block.

    Args:
        offline: True to stop the library. False to change nothing.
    """
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
