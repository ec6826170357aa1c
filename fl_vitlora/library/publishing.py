"""Uploads an export to the Hugging Face hub, into a private repository that is new or empty.

The access token is the one that every program of Hugging Face uses: from the environment variable
HF_TOKEN, or from ``hf auth login``. After the upload, the checksums that the hub states are
compared with those of the files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_vitlora.config.units import readable_bytes
from fl_vitlora.data.shards import is_shard
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.peft_export import ADAPTER, ADAPTER_CONFIG
from fl_vitlora.models import hub_weights, onnx_file, timm_folder

FLAG = "--push-to-hub"
# The files that an export has. A key ring, a shard and every other file are refused.
TEXTS = ("README.md", timm_folder.CONFIG, ADAPTER_CONFIG)
TENSORS = (timm_folder.WEIGHTS, ADAPTER)
OF_EXPORTS = (*TEXTS, *TENSORS, onnx_file.ONNX, onnx_file.WEIGHTS)
OF_THE_HUB = ".gitattributes"  # the hub writes this file into every new repository


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """An export on the hub.

    Attributes:
        address: The address of the repository.
        commit: The id of the commit.
        files: The size of each uploaded file in bytes, by its name.
    """

    address: str
    commit: str
    files: Mapping[str, int]

    @property
    def told(self) -> str:
        """Returns a sentence that says what was uploaded, and where it is."""
        files = ", ".join(f"{name} ({readable_bytes(size)})" for name, size in self.files.items())
        return f"pushed to the private repository {self.address} (commit {self.commit}): {files}"


def find_place(name: str, folder: Path | None = None) -> str:
    """Checks, before anything is exported, that an export can be uploaded.

    Args:
        name: The name of the repository, OWNER/NAME, or NAME for a repository of the user.
        folder: The folder of the export. It may have an export whose upload has failed.

    Returns:
        The whole name of the repository, OWNER/NAME.

    Raises:
        UserError: If the name is not valid, there is no access token, the hub cannot be reached or
            refuses the token, or the repository exists and is neither empty nor a copy of the
            folder, or is public.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"{FLAG} {name}: expected OWNER/NAME or NAME, with letters, digits, '-', '_' and '.', "
            "and at most 96 characters"
        ) from None
    with _in_one_line(name):
        token = get_token()
        if token is None:
            raise UserError(
                f"{FLAG} {name}: there is no access token for the hub; run hf auth login, or set "
                "the environment variable HF_TOKEN"
            )
        hub_weights.reachable.cache_clear()  # the network may be another than before
        if not hub_weights.reachable():
            raise UserError(
                f"{FLAG} {name}: the hub {constants.ENDPOINT} cannot be reached; nothing was "
                f"exported; export without {FLAG} as long as there is no network"
            )
        api = HfApi(token=token)
        user = api.whoami()["name"]
        whole = name if "/" in name else f"{user}/{name}"
        if api.repo_exists(whole):
            _expect_unused(api, whole, folder)
    return whole


def push(folder: Path, name: str) -> Pushed:
    """Uploads an export, and compares what the hub then has with the files.

    Args:
        folder: The folder of the export.
        name: The whole name of the repository, as `find_place` returns it.

    Raises:
        UserError: If the folder has a file that no export has, the hub refuses the upload, or the
            hub has other files afterwards.
    """
    from huggingface_hub import HfApi

    files = _expect_export(folder)
    ending = f"; the export is in {folder}: to upload it, give the command again"
    with _in_one_line(name, ending):
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        commit = _expect_unused(api, name, folder)
        if not commit:
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                allow_patterns=list(files),
                commit_message="Model exported by fl_vitlora",
            ).oid
            if differing := _differing(api, name, folder):
                raise UserError(
                    f"{FLAG} {name}: after the upload, {differing[0]} on the hub differs from the "
                    f"file in {folder}; first delete the repository {address}"
                )
    sizes = {name: path.stat().st_size for name, path in files.items()}
    return Pushed(address=str(address), commit=commit[:8], files=sizes)


def _expect_export(folder: Path) -> dict[str, Path]:
    """Returns the files of an export by name.

    Raises:
        UserError: If the folder has anything else, or a file with tensors is a shard.
    """
    files = {path.name: path for path in sorted(folder.iterdir())}
    for name, path in files.items():
        if name not in OF_EXPORTS or path.is_symlink() or not path.is_file():
            raise UserError(
                f"{FLAG}: {path} is not a file of an export; nothing was uploaded, because keys, "
                "shards and files of a run must not be given to the hub"
            )
        if name in TENSORS and is_shard(path):
            raise UserError(f"{FLAG}: {path} is a shard; nothing was uploaded")
    return files


def _expect_unused(api: Any, name: str, folder: Path | None) -> str:
    """Checks that a repository is private, and that it has no files, or those of the export.

    Args:
        api: The client of the hub.
        name: The whole name of the repository.
        folder: The folder of the export; None if there is none.

    Returns:
        The id of the last commit if the repository already has the files of the export, because
        only the comparison after an earlier upload has failed; otherwise "".

    Raises:
        UserError: If the repository is public or has other files.
    """
    found = api.model_info(name)
    held = [f.rfilename for f in found.siblings or () if f.rfilename != OF_THE_HUB]
    if not held and found.private:
        return ""
    exported = folder is not None and folder.is_dir() and any(folder.iterdir())
    if found.private and exported and not _differing(api, name, folder):
        return str(found.sha)
    why = f"has files, such as {held[0]}" if held else "is public"
    raise UserError(
        f"{FLAG} {name}: the hub already has a repository of this name, which {why}; choose "
        "another name"
    )


def _differing(api: Any, name: str, folder: Path | None) -> list[str]:
    """Returns the files of a repository and of a folder that are not the same in both."""
    checked = api.verify_repo_checksums(name, local_dir=folder)
    differing = [file["path"] for file in checked.mismatches]
    differing += [*checked.extra_paths, *checked.missing_paths]
    return [file for file in differing if file != OF_THE_HUB]


@contextlib.contextmanager
def _in_one_line(name: str, ending: str = "") -> Iterator[None]:
    """Inside a `with` block, turns an error of the hub's client into one line.

    Args:
        name: The name of the repository.
        ending: Words for the end of the line.

    Raises:
        UserError: If the code inside the block raises an exception.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}{ending}") from None
    except Exception as error:
        raise UserError(f"{FLAG} {name}: {_reason(error)}{ending}") from error


def _reason(error: BaseException) -> str:
    """Returns what an error of the hub's client means for the user."""
    answer = getattr(error, "response", None)
    while answer is None and error.__cause__ is not None:
        error = error.__cause__
        answer = getattr(error, "response", None)
    said = " ".join(str(error).split())[:300]
    if answer is None:
        return f"the upload failed ({type(error).__name__}: {said})"
    if answer.status_code == 401:
        return (
            "the hub does not accept the access token; run hf auth login, or set HF_TOKEN to a "
            "token that is valid"
        )
    if answer.status_code == 403:
        return (
            "the access token must not write there; use a token with the role write, and an owner "
            "for whom you may write"
        )
    return f"the hub refused with the code {answer.status_code} ({said})"
