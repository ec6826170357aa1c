"""Exports the model of a finished run for timm, for Hugging Face's library `peft`, or as ONNX."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from fl_vitlora.config.export_names import FORMS, READS
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.experiment.held_keys import holds_key, reveals_part_of_key
from fl_vitlora.experiment.merging import merged
from fl_vitlora.experiment.trained_model import TrainedModel
from fl_vitlora.finetuning.classifier import heads_of, plain_heads
from fl_vitlora.finetuning.methods import CannotMergeError
from fl_vitlora.finetuning.peft_export import (
    ADAPTER,
    ADAPTER_CONFIG,
    adapter_of,
    changes_between,
    open_adapter,
    write_adapter,
)
from fl_vitlora.library import publishing
from fl_vitlora.library.model_cards import card, images_of
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.onnx_file import INPUT, NORMALIZATION, ONNX, OUTPUT, open_onnx, write_onnx
from fl_vitlora.models.timm_folder import (
    describe,
    expect_same_logits,
    open_timm_folder,
    write_timm_folder,
)
from fl_vitlora.storage.files import (
    PRIVATE,
    WriteError,
    make_folder,
    private_folder_within,
    write_atomically,
)

Writer = Callable[[TrainedModel, Path, str, int | None], None]
PATCH_EMBEDDING = "patch_embed.proj"
REVEALS = (
    "the patch embedding of this model was trained on ciphertext and reveals parts of the key to "
    "everybody who can read the repository (docs/trust.md)"
)


def export(
    trained: TrainedModel,
    folder: Path,
    *,
    form: str,
    reads: str,
    client: int | None,
    push_to_hub: str | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Writes the model of a run into a new folder, with a text that says how to load the model.

    This function then loads the written model, and compares its logits with the logits of the run's
    model before any part is merged. In this way, a wrong export raises an error.

    Args:
        trained: The model of the run.
        folder: The folder, which must be new or empty. If the export is uploaded, the folder may
            have the files of exactly this export, because an earlier upload failed.
        form: "timm" for the whole model, "peft" for the changes only, "onnx" for a file of ONNX.
        reads: "plain" for a model that reads plain images, "ciphertext" for a model that reads
            images that are encrypted like the images of the run.
        client: The number of the client whose key is used, if every client has its own key.
        push_to_hub: The name of a repository on the Hugging Face hub, to which the export is
            uploaded; None to upload nothing.
        tell: A function that is called with sentences about what was uploaded.

    Raises:
        UserError: If the model cannot be exported in this form; the folder is then empty. If the
            export cannot be uploaded, it stays in the folder.
    """
    if form not in FORMS:
        raise unknown("form of an export", form, FORMS)
    if reads not in READS:
        raise unknown("value of reads", reads, READS)
    place = "" if push_to_hub is None else _place_on_hub(trained, reads, push_to_hub, folder)

    def write(where: Path) -> None:
        _write(trained, where, form, reads, client)

    if place and folder.is_dir() and any(folder.iterdir()):
        _expect_written(folder, write)
    else:
        _make_empty(folder)
        write(folder)
    if place:
        if reveals_part_of_key(trained.config, reads):
            tell(REVEALS)
        tell(publishing.push(folder, place).told)


def _write(trained: TrainedModel, folder: Path, form: str, reads: str, client: int | None) -> None:
    """Writes the files of an export into an empty folder, which is empty again after an error."""
    try:
        WRITERS[form](trained, folder, reads, client)
        write_atomically(folder / "README.md", card(trained, form, reads, client))
    except BaseException as error:
        for path in folder.iterdir():
            path.unlink()
        if isinstance(error, WriteError):
            raise UserError(f"export: {error}") from None
        raise


def _write_timm(trained: TrainedModel, folder: Path, reads: str, client: int | None) -> None:
    plain = replace(trained.backbone, model=_plain(trained, reads, client).float())
    described = describe(trained.backbone, trained.config.model.name)
    write_timm_folder(folder, plain, described, trained.class_names, trained.config.data.fit)
    opened = open_timm_folder(folder)
    expect_same_logits(_whole(trained, reads, client), opened, f"the files in {folder}")


def _write_peft(trained: TrainedModel, folder: Path, reads: str, client: int | None) -> None:
    public = backbone.build(trained.config.model, trained.class_names, trained.config.seed)
    plain_heads(public.model)
    tuned = _plain(trained, reads, client)
    heads = [name for name, module in tuned.named_modules() if module in heads_of(tuned)]
    # This project's patch embedding takes pixels in [-1, 1]; timm's may take other pixel values.
    always = [*heads, PATCH_EMBEDDING]
    changes = changes_between(public.model.double(), tuned, always)
    base = public.model.float()
    adapted = adapter_of(base, tuned.float(), changes)
    with private_folder_within(folder) as place:  # peft writes files that others can read
        write_adapter(place, adapted)
        for name in (ADAPTER_CONFIG, ADAPTER):
            (place / name).chmod(PRIVATE)
            (place / name).replace(folder / name)
    opened = open_adapter(base, folder)
    expect_same_logits(_whole(trained, reads, client), opened, f"the adapter in {folder}")


def _plain(trained: TrainedModel, reads: str, client: int | None) -> nn.Module:
    """Returns the trained model as a plain timm model in float64.

    Raises:
        UserError: If there is no such model; the message names another form if it may be possible.
    """
    try:
        return merged(trained, reads, client)
    except CannotMergeError as error:
        raise UserError(f"{error}; try the form onnx, which keeps the layers of a method") from None


def _write_onnx(trained: TrainedModel, folder: Path, reads: str, client: int | None) -> None:
    whole = _whole(trained, reads, client)
    try:
        exported = replace(whole, model=merged(trained, reads, client).float())
    except CannotMergeError:  # the layers of the method are then part of the file
        exported = whole
    channels, height, width = whole.image_shape
    texts = {
        "class_names": json.dumps(trained.class_names, ensure_ascii=False),
        "reads": images_of(trained, reads, client),
        "input": f"{INPUT}: float32 (batch, {channels}, {height}, {width}), {NORMALIZATION}",
        "output": f"{OUTPUT}: float32 (batch, {len(trained.class_names)})",
        "mean": json.dumps([0.5] * channels),
        "std": json.dumps([0.5] * channels),
        "fit": trained.config.data.fit,
    }
    write_onnx(folder / ONNX, exported, len(trained.class_names), texts)
    opened = open_onnx(folder / ONNX)
    for images in (1, 3):  # the file takes any number
        expect_same_logits(whole, opened, f"the file {folder / ONNX}", images)


WRITERS: Mapping[str, Writer] = {"timm": _write_timm, "peft": _write_peft, "onnx": _write_onnx}


def _place_on_hub(trained: TrainedModel, reads: str, name: str, folder: Path) -> str:
    """Returns the whole name of the repository on the hub, after all checks before an upload.

    Raises:
        UserError: If the key was put into the model that reads ciphertext, or if nothing can be
            uploaded to this repository.
    """
    if holds_key(trained.config, reads):
        raise UserError(
            "--push-to-hub: this model for ciphertext holds the key, because everybody who has "
            "the public model can compute the key from it; push the model for plain images, or "
            "give the folder to the service yourself"
        )
    return publishing.find_place(name, folder)


def _whole(trained: TrainedModel, reads: str, client: int | None) -> Backbone:
    """Returns the trained model with the layers of the method, as the run uses the model."""
    made = trained.for_plain if reads == "plain" else trained.for_ciphertext
    return replace(trained.backbone, model=made(client))


def _expect_written(folder: Path, write: Callable[[Path], None]) -> None:
    """Checks that a folder has exactly the files of an export, as after an upload that failed.

    Args:
        folder: The folder.
        write: A function that writes the export into another folder, with which it is compared.

    Raises:
        UserError: If the folder has another file, lacks a file, or has a file of other content.
    """
    names = sorted(path.name for path in folder.iterdir())
    same = set(names) <= set(publishing.OF_EXPORTS)
    if same:
        try:
            with private_folder_within(folder) as other:
                write(other)
                same = names == sorted(path.name for path in other.iterdir())
                same = same and not any(filecmp.cmpfiles(folder, other, names, shallow=False)[1:])
        except WriteError as error:
            raise UserError(f"export: {error}") from None
    if not same:
        raise UserError(
            f"export folder {folder} is in use, and its files are not those of this export; choose "
            "a new folder"
        )


def _make_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export folder {folder} is in use; choose a new folder")
    try:
        make_folder(folder)
    except WriteError as error:
        raise UserError(f"export: {error}") from None
