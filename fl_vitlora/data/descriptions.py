"""What a shard says of its own encryption: written into its metadata, and read back field by field.

Whatever stands there may have been written by another program, or by hand. So every field is
compared with what it may be, and a wrong one is named with the file, before anything is decrypted.
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
    """How the images of a shard are encrypted.

    Attributes:
        cipher: For images of the shape that the shard has.
        scope: Which images share a key.
        seed: The seed of the run, which the keys depend on.
        party: Whose images they are.
        part: What they are for.
    """

    cipher: Cipher
    scope: Scope
    seed: int
    party: str
    part: Part


class Fields:
    """The metadata of one shard.

    Args:
        path: The file, for messages.
        metadata: Its metadata.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path, self._metadata = path, metadata

    def refuse(self, name: str, why: str) -> UserError:
        """Makes the error about one field."""
        value = shown(self._metadata.get(name))
        return UserError(f"shard {self._path}: {name} {value}: {why}; write the shard anew")

    def text(self, name: str) -> str:
        """Returns a field.

        Raises:
            UserError: When it is missing.
        """
        if name not in self._metadata:
            raise UserError(f"shard {self._path} does not say its {name}; write the shard anew")
        return self._metadata[name]

    def number(self, name: str, least: int) -> int:
        """Returns a field that is a whole number.

        Raises:
            UserError: When it is missing, is none, or is below the least.
        """
        text = self.text(name)
        if not NUMBER.fullmatch(text) or int(text) < least:
            raise self.refuse(name, f"expected a whole number, {least} or more")
        return int(text)

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        """Returns a field that has only a few values.

        Raises:
            UserError: When it is missing, or is none of them.
        """
        text = self.text(name)
        if text not in choices:
            raise self.refuse(name, f"expected one of {', '.join(choices)}")
        return text

    def steps(self) -> tuple[str, ...]:
        """Returns the steps of encryption; none where the images are plain.

        Raises:
            UserError: When one of them does not exist, stands twice, or all are missing under a
                key.
        """
        found = tuple(step for step in self.text("steps").split(",") if step)
        if any(step not in STEPS for step in found) or len(set(found)) < len(found):
            raise self.refuse("steps", f"expected some of {', '.join(STEPS)}, each once")
        if not found and self._metadata.get("key_id"):
            raise self.refuse("steps", "expected the steps of the encryption, as there is a key_id")
        return found


def read_description(
    path: Path, metadata: Mapping[str, str], image_shape: tuple[int, ...]
) -> Description:
    """Reads how a shard is encrypted.

    Args:
        path: The shard, for messages.
        metadata: What it says of itself.
        image_shape: (C, H, W) of its images.

    Raises:
        UserError: When a field is missing, has no meaning, or does not fit the images.
    """
    fields = Fields(path, metadata)
    channels, *sides = image_shape
    if not _lies_in(channels, CHANNELS) or not all(_lies_in(side, SIDE) for side in sides):
        raise UserError(f"shard {path}: images of shape {list(image_shape)} hold no pixels")
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
        raise fields.refuse("party", f"expected {TEST}, or a client such as 'client 3'")
    return Description(
        cipher=cipher,
        scope=typing.cast(Scope, scope),
        seed=fields.number("seed", 0),
        party=party,
        part=typing.cast(Part, fields.one_of("part", typing.get_args(Part))),
    )


def _check_geometry(cipher: Cipher, fields: Fields) -> None:
    """Compares the numbers of a cipher with the shape of its images."""
    channels, height, width = cipher.image_shape
    if height % cipher.block_size or width % cipher.block_size:
        raise fields.refuse("block_size", f"it does not divide images of {height}x{width} pixels")
    blocks = height * width // cipher.block_size**2
    for name, fixed, most in (
        ("fixed_blocks", cipher.fixed_blocks, blocks),
        ("fixed_entries", cipher.fixed_entries, channels * cipher.block_size**2),
    ):
        if fixed > most:
            raise fields.refuse(name, f"there are only {most}")


def _lies_in(number: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= number <= bounds[1]
