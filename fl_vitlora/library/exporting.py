"""Exports the model of a finished run for timm or for Hugging Face's library `peft`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from fl_vitlora.errors import UserError
from fl_vitlora.experiment.merging import merged
from fl_vitlora.experiment.trained_model import TrainedModel
from fl_vitlora.finetuning.classifier import heads_of, plain_heads
from fl_vitlora.finetuning.peft_export import (
    adapter_of,
    changes_between,
    open_adapter,
    write_adapter,
)
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import BUNDLED, PRETRAINED, Backbone
from fl_vitlora.models.timm_folder import (
    describe,
    expect_same_logits,
    open_timm_folder,
    write_timm_folder,
)
from fl_vitlora.storage.files import WriteError, make_folder, write_atomically

Form = Literal["timm", "peft"]
FORMS = ("timm", "peft")
READS = ("plain", "ciphertext")
PATCH_EMBEDDING = "patch_embed.proj"


def export(
    trained: TrainedModel, folder: Path, *, form: str, reads: str, client: int | None
) -> None:
    """Writes the model of a run into a new folder, with a text that says how to load the model.

    This function then loads the written model, and compares its logits with the logits of the run's
    model before any part is merged. In this way, a wrong export raises an error.

    Args:
        trained: The model of the run.
        folder: The folder, which must be new or empty.
        form: "timm" for the whole model, "peft" for the changes only.
        reads: "plain" for a model that reads plain images, "ciphertext" for a model that reads
            images that are encrypted like the images of the run.
        client: The number of the client whose key is used, if every client has its own key.

    Raises:
        UserError: If the model cannot be exported in this form; the folder is then empty.
    """
    if form not in FORMS or reads not in READS:
        raise UserError(
            f"export: expected form timm or peft, and reads plain or ciphertext, got {form} and "
            f"{reads}"
        )
    _make_empty(folder)
    try:
        if form == "timm":
            _write_timm(trained, folder, reads, client)
        else:
            _write_peft(trained, folder, reads, client)
        write_atomically(folder / "README.md", _card(trained, form, reads, client))
    except BaseException as error:
        for path in folder.iterdir():
            path.unlink()
        if isinstance(error, WriteError):
            raise UserError(f"export: {error}") from None
        raise


def _write_timm(trained: TrainedModel, folder: Path, reads: str, client: int | None) -> None:
    plain = replace(trained.backbone, model=merged(trained, reads, client).float())
    described = describe(trained.backbone, trained.config.model.name)
    write_timm_folder(folder, plain, described, trained.class_names, trained.config.data.fit)
    opened = open_timm_folder(folder)
    expect_same_logits(_whole(trained, reads, client), opened, f"the files in {folder}")


def _write_peft(trained: TrainedModel, folder: Path, reads: str, client: int | None) -> None:
    public = backbone.build(trained.config.model, trained.class_names, trained.config.seed)
    plain_heads(public.model)
    tuned = merged(trained, reads, client)
    heads = [name for name, module in tuned.named_modules() if module in heads_of(tuned)]
    # This project's patch embedding takes pixels in [-1, 1]; timm's may take other pixel values.
    always = [*heads, PATCH_EMBEDDING]
    changes = changes_between(public.model.double(), tuned, always)
    base = public.model.float()
    write_adapter(folder, adapter_of(base, tuned.float(), changes))
    opened = open_adapter(base, folder)
    expect_same_logits(_whole(trained, reads, client), opened, f"the adapter in {folder}")


def _whole(trained: TrainedModel, reads: str, client: int | None) -> Backbone:
    """Returns the trained model with the layers of the method, as the run uses the model."""
    made = trained.for_plain if reads == "plain" else trained.for_ciphertext
    return replace(trained.backbone, model=made(client))


def _make_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export folder {folder} is in use; choose a new folder")
    try:
        make_folder(folder)
    except WriteError as error:
        raise UserError(f"export: {error}") from None


def _card(trained: TrainedModel, form: str, reads: str, client: int | None) -> str:
    """Returns the text of README.md: what the model is, what it reads, and how to load it."""
    config = trained.config
    whose = "" if client is None else f" of client {client}"
    sees = "plain images"
    if reads == "ciphertext" and config.encryption.steps:
        sees = (
            f"images encrypted with the key{whose} under the secret {trained.key_id} "
            f"({', '.join(config.encryption.steps)}; scope {config.encryption.scope}), which must "
            "not be resized"
        )
    channels, height, width = trained.backbone.image_shape
    return CARD.format(
        name=config.model.name,
        method=config.finetuning.method,
        classes=", ".join(trained.class_names),
        clients=config.clients,
        sees=sees,
        size=f"{channels} × {height} × {width}",
        fit=config.data.fit,
        background=", ".join(map(str, config.data.background)),
        load=_loading(trained, form),
    )


def _loading(trained: TrainedModel, form: str) -> str:
    """Returns the lines of Python that load an export."""
    if form == "timm":
        return 'import timm\n\nmodel = timm.create_model("local-dir:THIS_FOLDER", pretrained=True)'
    wanted, classes = trained.config.model, len(trained.class_names)
    if wanted.name in BUNDLED or wanted.weights != PRETRAINED or wanted.patch_size is not None:
        imports = (
            "from fl_vitlora.config import ModelConfig\nfrom fl_vitlora.models import backbone"
        )
        base = (
            f"backbone.build(\n    {wanted!r},\n    classes={list(trained.class_names)!r},\n"
            f"    seed={trained.config.seed},\n).model"
        )
    else:
        imports, size = "import timm", tuple(trained.backbone.image_shape[1:])
        base = (
            f'timm.create_model("{wanted.name}", pretrained=True, num_classes={classes}, '
            f"img_size={size})"
        )
    return (
        f"{imports}\nfrom peft import PeftModel\n\nbase = {base}\n"
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER").eval()'
    )


CARD = """---
library_name: timm
tags: [federated-learning, vision-transformer]
---

# {name}, fine-tuned by {clients} clients

* Method: `{method}`. Classes: {classes}.
* The model reads {sees}, {size} (channels, height, width), scaled to [-1, 1]: mean 0.5, standard
  deviation 0.5.
* Before training, images of another shape were fitted with `data.fit={fit}` and the background
  {background}. timm's own transform fills borders with grey.

```python
{load}
```

Made with fl_vitlora. The clients' images are not part of this folder. It was not tested what the
model reveals about the images on which it was trained.
"""
