"""The command `fl-vitlora decrypt`: the owner looks at the images of a shard."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Adds the command to the parser of the program.

    Args:
        commands: The object of argparse to which commands are added.
    """
    parser = commands.add_parser(
        "decrypt",
        help="look at the images of a shard again, with the key ring",
        description="Decrypts a shard with the owner's key ring, and writes its images as PNG "
        "files, in a folder for each class. The pixels are those that were encrypted: resized, and "
        "with all copies. Only you can read the files.",
        allow_abbrev=False,
    )
    parser.add_argument("shard", type=Path, metavar="SHARD", help="the shard")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder for the images")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="RING", help="the owner's key ring"
    )
    parser.set_defaults(command=decrypt)


def decrypt(arguments: argparse.Namespace) -> None:
    """Writes the plain images of a shard, and prints how many they are."""
    from fl_vitlora.experiment.owner_images import decrypt_shard
    from fl_vitlora.reporting.counting import CountDisplay

    with CountDisplay() as display:
        number = decrypt_shard(arguments.shard, arguments.out, arguments.key, display.advance)
    print(f"{arguments.out}: {number:,} plain images, readable by you alone")
