"""Writes the README.md of an export: what the model is, which images it reads, how to load it."""

from __future__ import annotations

from dataclasses import fields, replace

from fl_vitlora.config import ModelConfig
from fl_vitlora.data.pixels import Look, look_of
from fl_vitlora.experiment.trained_model import TrainedModel
from fl_vitlora.models.backbone import BUNDLED, PRETRAINED, RANDOM
from fl_vitlora.models.onnx_file import INPUT, ONNX, OUTPUT
from fl_vitlora.models.timm_models import FOLDER

MOST_IDS = 20  # the largest number of ids of secrets in a card
OWN_WEIGHTS, OWN_MODEL = "WEIGHTS_OF_THE_RUN", "MODEL_OF_THE_RUN"
FILLED_IN = {
    OWN_WEIGHTS: f"In the lines below, replace `{OWN_WEIGHTS}` by the path of the weights with\n"
    "  which the run started. The setting `model.weights` of the run names this file.",
    OWN_MODEL: f"In the lines below, replace `{OWN_MODEL}` by the path of the folder with the\n"
    "  run's pre-trained model. The setting `model.name` of the run names this folder.",
}


def card(trained: TrainedModel, form: str, reads: str, client: int | None) -> str:
    """Returns the text of README.md.

    Args:
        trained: The model of the run.
        form: The form of the export: timm, peft or onnx.
        reads: The images that the model reads: plain or ciphertext.
        client: The number of the client whose key is used, if every client has its own key.
    """
    config = trained.config
    channels, height, width = trained.backbone.image_shape
    look, load = look_of(config.data), _loading(trained, form, reads)
    return CARD.format(
        library=form,  # the hub knows each form by this name
        name=public_model(config.model).name,
        method=config.finetuning.method,
        classes=", ".join(trained.class_names),
        clients=config.clients,
        sees=images_of(trained, reads, client),
        size=f"{channels} × {height} × {width}",
        fit=look.fit,
        background=look.background,
        load=load,
        fill_in=_to_fill_in(load),
    )


def images_of(trained: TrainedModel, reads: str, client: int | None) -> str:
    """Returns which images an exported model reads, and whose key encrypts them."""
    config = trained.config
    if reads == "plain" or not config.encryption.steps:
        return "plain images"
    whose = "" if client is None else f" of client {client}"
    return (
        f"images encrypted with the key{whose} under {_secret_of(trained, client)} "
        f"({', '.join(config.encryption.steps)}; scope {config.encryption.scope}), which must "
        "not be resized"
    )


def _secret_of(trained: TrainedModel, client: int | None) -> str:
    """Returns a text with the ids of the secrets of a client's key, or of all clients' keys."""
    ids = trained.secrets_of(client)
    if len(ids) <= 1:
        return f"the secret {ids[0]}" if ids else "an unknown secret"
    more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
    return f"the secrets {', '.join(ids[:MOST_IDS])}{more} of several owners"


def _loading(trained: TrainedModel, form: str, reads: str) -> str:
    """Returns the lines of Python that load an export."""
    if form == "timm":
        return 'import timm\n\nmodel = timm.create_model("local-dir:THIS_FOLDER", pretrained=True)'
    if form == "onnx":
        _, height, width = trained.backbone.image_shape
        read = READ_CIPHERTEXT
        if reads == "plain" or not trained.config.encryption.steps:
            read = reading(look_of(trained.config.data), height, width)
        used = "Image" if read == READ_CIPHERTEXT else "Image, ImageOps"
        return USE_OF_ONNX.format(file=ONNX, used=used, read=read, input=INPUT, output=OUTPUT)
    return _loading_peft(trained)


def _loading_peft(trained: TrainedModel) -> str:
    """Returns the lines that build the pre-trained model, and put the exported changes into it."""
    wanted, classes = public_model(trained.config.model), len(trained.class_names)
    if wanted.name in BUNDLED or wanted.weights != PRETRAINED or wanted.patch_size is not None:
        imports = (
            "from fl_vitlora.config import ModelConfig\nfrom fl_vitlora.models import backbone"
        )
        given = ", ".join(
            f"{field.name}={getattr(wanted, field.name)!r}"
            for field in fields(wanted)
            if field.name == "name" or getattr(wanted, field.name) != field.default
        )
        base = (
            f"backbone.build(\n    ModelConfig({given}),\n"
            f"    classes={list(trained.class_names)!r},\n    seed={trained.config.seed},\n).model"
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


def public_model(wanted: ModelConfig) -> ModelConfig:
    """Returns the settings of a model without paths of this machine.

    Args:
        wanted: The settings of the run.

    Returns:
        The settings, in which `OWN_WEIGHTS` and `OWN_MODEL` stand for the paths.
    """
    weights, name = wanted.weights, wanted.name
    if weights not in (PRETRAINED, RANDOM):
        weights = OWN_WEIGHTS
    if name.startswith(FOLDER):
        name = f"{FOLDER}{OWN_MODEL}"
    return replace(wanted, name=name, weights=weights, init_from=None)


def _to_fill_in(load: str) -> str:
    """Returns a sentence about each word in the lines for which the reader must write a path."""
    return "".join(f"* {told}\n" for word, told in FILLED_IN.items() if word in load)


def reading(look: Look, height: int, width: int) -> str:
    """Returns the lines of Python that read a plain image as a run does.

    The lines set the variable `image` to an RGB image of the library Pillow, of H × W pixels. An
    image of more than 8 bits for each colour is not read as in a run.

    Args:
        look: The settings for the conversion of images.
        height: The height H in pixels.
        width: The width W in pixels.
    """
    size = f"({width}, {height}), Image.Resampling.BICUBIC"
    fitted = {
        "squash": f"image.resize({size})",
        "crop": f"ImageOps.fit(image, {size})",
        "pad": f"ImageOps.pad(image, {size}, color={look.background})",
    }
    return READ_PLAIN.format(background=look.background, fitted=fitted[look.fit])


CARD = """---
library_name: {library}
tags: [federated-learning, vision-transformer]
---

# {name}, fine-tuned by {clients} clients

* Method: `{method}`. Classes: {classes}.
* The model reads {sees}, {size} (channels, height, width), scaled to [-1, 1]: mean 0.5, standard
  deviation 0.5.
* Before training, images were turned as their EXIF tag says, put before the background
  {background} (red, green, blue) and fitted to this size with `data.fit={fit}`. timm's own
  transform fills borders with grey.
{fill_in}
```python
{load}
```

Made with fl_vitlora. The clients' images are not part of this folder. It was not tested what the
model reveals about the images on which it was trained.
"""

READ_PLAIN = """image = ImageOps.exif_transpose(Image.open("IMAGE"))  # 8 bits for each colour
if image.has_transparency_data:
    behind = Image.new("RGBA", image.size, {background})
    image = Image.alpha_composite(behind, image.convert("RGBA"))
image = image.convert("RGB")
image = {fitted}"""

READ_CIPHERTEXT = 'image = Image.open("IMAGE").convert("RGB")'

USE_OF_ONNX = """import json

import numpy as np
import onnxruntime
from PIL import {used}

session = onnxruntime.InferenceSession("THIS_FOLDER/{file}")
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
{read}
pixels = (np.asarray(image, dtype=np.float32) / 255 - 0.5) / 0.5
(logits,) = session.run(["{output}"], {{"{input}": pixels.transpose(2, 0, 1)[None]}})
print(names[logits[0].argmax()])"""
