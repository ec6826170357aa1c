"""The command `fl-vitlora encrypt`: an owner's folder of images becomes encrypted shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_vitlora import config
from fl_vitlora.config import yaml_text
from fl_vitlora.errors import UserError

# Flags, the settings that they set, the words that stand for the values, and the explanations.
SETTINGS: dict[str, tuple[str, str, str]] = {
    "--key": ("encryption.key_file", "RING", "the owner's key ring; made if it does not exist"),
    "--scheme": ("encryption.steps", "NAME", "the encryption: ViT-blockwise, EtC, LE, ELE or PE"),
    "--scope": (
        "encryption.scope",
        "SCOPE",
        "which images share a key: shared, client, image or block",
    ),
    "--seed": ("seed", "N", "the seed of the experiment, from which keys are derived"),
    "--model": ("model.name", "NAME", "the model, which decides the size of images and patches"),
    "--image-size": ("model.image_size", "PIXELS", "the side of the encrypted images"),
    "--patch-size": ("model.patch_size", "PIXELS", "the side of a patch of the model"),
    "--copies": ("data.copies", "N", "the number of copies of each training image"),
    "--augment": ("data.augment", "NAMES", "how the copies differ: flip, crop or flip,crop"),
    "--test-fraction": (
        "data.test_fraction",
        "SHARE",
        "hold out this share of the images for testing",
    ),
}
DESCRIPTION = """Encrypts a folder of your own images for a training site. The images stay with
you: the files in OUT hold only ciphertext and labels, and the key ring stays with you as well.
IMAGES is a folder of images by class (with or without splits), a table of images, or a data set
that the library datasets has saved. Use the experiment's own configuration (--config), so that all
owners and the training site agree; other flags override it."""


def add(commands: Any) -> None:
    """Adds the command to the parser of the program.

    Args:
        commands: The object of argparse to which commands are added.
    """
    parser = commands.add_parser(
        "encrypt",
        help="encrypt a folder of your own images for a training site",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="the folder of your images")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for the shards")
    parser.add_argument("--config", metavar="FILE", help="the configuration of the experiment")
    parser.add_argument(
        "--client",
        type=int,
        default=0,
        metavar="K",
        help="the number, from 0, that the training site has given to you (default: 0)",
    )
    for flag, (path, value, explanation) in SETTINGS.items():
        parser.add_argument(flag, dest=path, metavar=value, help=explanation)
    _add_other_flags(parser)
    parser.set_defaults(command=encrypt)


def _add_other_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that are not the name of one setting."""
    parser.add_argument(
        "--common-test",
        action="store_true",
        help="the images for testing are for the server (test.safetensors), not for this client",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="the names of all classes of the experiment, as a JSON list; needed if your images "
        "lack some of them",
    )
    parser.add_argument(
        "--png", action="store_true", help="also write the encrypted images as PNG files"
    )
    parser.add_argument(
        "--storage-key",
        type=Path,
        metavar="FILE",
        help="write the key that opens your files for the training site; it does not decrypt the "
        "images in them",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace other shards of the same names in OUT"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="set any other setting of the data or the encryption, such as data.fit=crop",
    )


def encrypt(arguments: argparse.Namespace) -> None:
    """Encrypts the images of an owner, and prints what was written."""
    if arguments.client < 0:
        raise UserError(f"--client {arguments.client}: expected a number from 0")
    experiment = read_settings(arguments)
    from fl_vitlora.experiment.owner_images import PNGS, write_ciphertext
    from fl_vitlora.experiment.owner_request import OwnerRequest, read_classes
    from fl_vitlora.experiment.owner_shards import Shown, encrypt_images
    from fl_vitlora.reporting.counting import CountDisplay

    request = OwnerRequest(
        config=experiment,
        client=arguments.client,
        out=arguments.out,
        holds_out=vars(arguments)["data.test_fraction"] is not None,
        common_test=arguments.common_test,
        class_names=None if arguments.classes is None else read_classes(arguments.classes),
        replaces=arguments.replace,
        storage_key=arguments.storage_key,
    )
    with CountDisplay() as display:
        shown = Shown(note=display.note, begin=display.begin, advance=display.advance)
        shards = encrypt_images(request, shown)
        folder = arguments.out / PNGS
        if arguments.png:
            display.begin(str(folder), sum(len(shard.content) for shard in shards))
            written = write_ciphertext(experiment, shards, folder, display.advance)
    for shard in shards:
        told = "" if shard.is_new else ", was made before and is whole"
        size = shard.path.stat().st_size / 1e6
        print(f"{shard.path}: {len(shard.content):,} images, {size:,.1f} MB{told}")
    if arguments.png:
        print(f"{folder}: {written:,} encrypted images; their names and folders are not secret")
    if arguments.storage_key is not None:
        print(f"{arguments.storage_key}: the storage key of client {arguments.client}")


def read_settings(arguments: argparse.Namespace) -> config.Config:
    """Returns the settings of the experiment, with the owner's folder as its data set.

    Raises:
        UserError: If a setting cannot be used, or nothing says how large the images must be.
    """
    given = dict(yaml_text.parse_override(text) for text in arguments.overrides)
    for path, _, _ in SETTINGS.values():
        value = vars(arguments)[path]
        if value is not None and path in ("encryption.key_file", "model.name"):
            given.setdefault(path, value)
        elif value is not None:
            given.setdefault(path, yaml_text.parse_override(f"{path}={value}")[1])
    sizes = {"model.image_size", "model.patch_size"} <= given.keys()
    if arguments.config is None and "model.name" not in given and not sizes:
        raise UserError(
            "expected the configuration of the experiment, --config FILE, because all owners and "
            "the training site must agree; or the model, --model NAME; or --image-size and "
            "--patch-size"
        )
    own = {
        "data.name": str(arguments.images),
        "data.partition": "iid",  # the images are those of one client
        "data.client_column": None,
    }
    return config.load(arguments.config, given | own)
