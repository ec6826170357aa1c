"""Reads the metadata that describe how the images of a shard are encrypted.

A shard is a file with the images of one client, or with test images. Another program or a person
may have written the metadata. Therefore this module checks each field before any image is
decrypted. The error message about a wrong field names the file and the field.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_vitlora.config import CipherStep
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import TEST, Part, Scope
from fl_vitlora.errors import UserError, shown

NUMBER = re.compile(r"\d{1,18}", re.ASCII)
PARTY = re.compile(rf"{TEST}|client \d{{1,9}}", re.ASCII)
STEPS = typing.get_args(CipherStep)
CHANNELS, SIDE = (1, 64), (1, 2**16)


@dataclass(frozen=True, kw_only=True)
class Description:
    """The description of how the images of a shard are encrypted.

    Attributes:
        cipher: The cipher for images of the shape (C, H, W) that the shard has.
        scope: The scope of the keys, which says which images share a key.
        seed: The seed of the run, from which the keys are derived.
        party: The owner of the images: "test" for common test images, or a client such as "client
            3".
        part: The use of the images: "train", "validation" or "test".
    """

    cipher: Cipher
    scope: Scope
    seed: int
    party: str
    part: Part


class Fields:
    """The metadata of one shard.

    Args:
        path: The path of the shard, for messages.
        metadata: The metadata of the shard.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path, self._metadata = path, metadata

    def refuse(self, name: str, why: str) -> UserError:
        """Returns the error for a wrong value of one field.

        Args:
            name: The name of the field, for example "seed".
            why: A text that says which value was expected, or why the value is wrong.
        """
        value = shown(self._metadata.get(name))
        return UserError(f"shard {self._path}: {name} {value}: {why}; write the shard again")

    def text(self, name: str) -> str:
        """Returns the value of the field `name` as text.

        Raises:
            UserError: When the field is missing.
        """
        if name not in self._metadata:
            raise UserError(
                f"shard {self._path}: the field {name} is missing in the metadata; write the shard "
                "again"
            )
        return self._metadata[name]

    def number(self, name: str, least: int) -> int:
        """Returns the value of the field `name` as a whole number of at least `least`.

        Raises:
            UserError: When the field is missing, is not a whole number, or is below `least`.
        """
        text = self.text(name)
        if not NUMBER.fullmatch(text) or int(text) < least:
            raise self.refuse(name, f"expected a whole number of at least {least}")
        return int(text)

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        """Returns the value of the field `name`, which must be one of `choices`.

        Raises:
            UserError: When the field is missing, or when its value is not one of the choices.
        """
        text = self.text(name)
        if text not in choices:
            raise self.refuse(name, f"expected one of {', '.join(choices)}")
        return text

    def steps(self) -> tuple[str, ...]:
        """Returns the steps of the encryption; an empty tuple if the images are plain.

        Raises:
            UserError: When a step does not exist or occurs twice, or when the metadata name a key
                but no steps.
        """
        found = tuple(step for step in self.text("steps").split(",") if step)
        if any(step not in STEPS for step in found) or len(set(found)) < len(found):
            raise self.refuse("steps", f"expected different steps among {', '.join(STEPS)}")
        if not found and self._metadata.get("key_id"):
            raise self.refuse(
                "steps", "expected at least one encryption step, because the metadata name a key_id"
            )
        return found


def read_description(
    path: Path, metadata: Mapping[str, str], image_shape: tuple[int, ...]
) -> Description:
    """Reads from the metadata how a shard is encrypted.

    Args:
        path: The path of the shard, for messages.
        metadata: The metadata of the shard.
        image_shape: The shape (C, H, W) of the shard's images: channels, height and width.

    Returns:
        The description of the encryption: the cipher, and the scope, seed, party and part from
        which the key is derived.

    Raises:
        UserError: When a field is missing, is not valid, or does not fit the images.
    """
    fields = Fields(path, metadata)
    channels, *sides = image_shape
    if not _lies_in(channels, CHANNELS) or not all(_lies_in(side, SIDE) for side in sides):
        raise UserError(
            f"shard {path}: expected images with 1 to 64 channels and sides of 1 to 65536 pixels, "
            f"got the shape {list(image_shape)}"
        )
    scope = fields.one_of("scope", typing.get_args(Scope))
    cipher = Cipher(
        steps=fields.steps(),
        block_size=fields.number("block_size", 1),
        image_shape=typing.cast(tuple[int, int, int], tuple(image_shape)),
        fixed_blocks=fields.number("fixed_blocks", 0),
        fixed_entries=fields.number("fixed_entries", 0),
        per_block=scope == "block",
    )
    _check_geometry(cipher, fields)
    party = fields.text("party")
    if not PARTY.fullmatch(party):
        raise fields.refuse("party", f"expected '{TEST}', or a client such as 'client 3'")
    return Description(
        cipher=cipher,
        scope=typing.cast(Scope, scope),
        seed=fields.number("seed", 0),
        party=party,
        part=typing.cast(Part, fields.one_of("part", typing.get_args(Part))),
    )


def _check_geometry(cipher: Cipher, fields: Fields) -> None:
    """Checks that the blocks of a cipher fit the shape of the images.

    Raises:
        UserError: When the images cannot be divided into whole blocks, or when more blocks or
            entries are fixed than exist.
    """
    channels, height, width = cipher.image_shape
    if height % cipher.block_size or width % cipher.block_size:
        raise fields.refuse(
            "block_size",
            "expected a number that divides the height and the width of the images, "
            f"{height}x{width} pixels",
        )
    blocks = height * width // cipher.block_size**2
    for name, fixed, most in (
        ("fixed_blocks", cipher.fixed_blocks, blocks),
        ("fixed_entries", cipher.fixed_entries, channels * cipher.block_size**2),
    ):
        if fixed > most:
            raise fields.refuse(name, f"expected at most {most}")


def _lies_in(number: int, bounds: tuple[int, int]) -> bool:
    """Returns True if a number lies between two bounds or equals one of them."""
    return bounds[0] <= number <= bounds[1]
