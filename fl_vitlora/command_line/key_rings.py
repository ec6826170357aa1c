"""The command `fl-vitlora keys`: makes, shows and changes key rings, and hands out storage keys."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_vitlora import config


def add(commands: Any) -> None:
    """Adds the command to the parser of the program.

    Args:
        commands: The object of argparse to which commands are added.
    """
    parser = commands.add_parser(
        "keys",
        help="make, show or change a key ring, or hand out storage keys",
        description="A key ring is a file of secrets from which all keys are derived. It stays "
        "with the owner of the images.",
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = _ring(kinds, "new", "make a key ring with a new secret", make)
    new.description = "Makes a key ring with one new secret. An existing file is never replaced."
    _ring(kinds, "show", "show the ids of the secrets; no secret is shown", show)
    rotate = _ring(kinds, "rotate", "add a new secret, and encrypt shards again with it", turn)
    rotate.add_argument(
        "shards", nargs="*", type=Path, metavar="SHARDS", help="shards, or folders of shards"
    )
    _add_client(kinds)
    hand_out = kinds.add_parser(
        "storage",
        help="write the keys that open the files of shards",
        description="Writes a storage key for each client, or server, that has shards in a folder. "
        "A storage key opens the files, but does not decrypt the images in them.",
        allow_abbrev=False,
    )
    hand_out.add_argument("shards", type=Path, metavar="SHARDS", help="a shard, or a folder")
    hand_out.add_argument("out", type=Path, metavar="OUT", help="the folder for the keys")
    hand_out.add_argument("--key", required=True, metavar="RING", help="the owner's key ring")
    hand_out.set_defaults(command=storage)


def _add_client(kinds: Any) -> None:
    """Adds the command that exports the key of one client."""
    parser = kinds.add_parser(
        "client",
        help="export the key of one client, for the node of this client",
        description="Writes the key of one client into a new file, so that the node of this client "
        "never holds the keys of other clients. The file opens the client's shards, and adapts and "
        "aligns models to the client's images. Nobody can compute the key of another client from "
        "it. On the node, encryption.key_file names the file. It needs encryption.scope client.",
        allow_abbrev=False,
    )
    parser.add_argument("ring", metavar="RING", help="the file of the owner's key ring")
    parser.add_argument(
        "name",
        metavar="NAME",
        help="the client: its number, from 0, or its name in clients.json beside the "
        "configuration; number:12 and name:12 say which of them 12 is",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the new file")
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the configuration of the experiment, such as runs/NAME/config.yaml; its scope and "
        "its seed decide which keys the clients have",
    )
    parser.add_argument(
        "--id", metavar="ID", help="the id of the secret in the key ring (default: the newest)"
    )
    parser.set_defaults(command=client)


def _ring(kinds: Any, name: str, explanation: str, command: Any) -> Any:
    """Adds a command that takes the path of a key ring."""
    parser = kinds.add_parser(name, help=explanation, description="", allow_abbrev=False)
    parser.description = f"{explanation[0].upper()}{explanation[1:]}."
    parser.add_argument("ring", metavar="RING", help="the file of the key ring")
    parser.set_defaults(command=command)
    return parser


def make(arguments: argparse.Namespace) -> None:
    """Makes a key ring with a new secret, and prints the id of the secret."""
    from fl_vitlora.experiment.owner_keys import new_ring

    print(f"{arguments.ring}: a new key ring with the secret {new_ring(Path(arguments.ring))}")


def show(arguments: argparse.Namespace) -> None:
    """Prints the ids of all secrets of a key ring, the oldest first."""
    from fl_vitlora.experiment.owner_keys import ids_of_ring

    names = ids_of_ring(Path(arguments.ring))
    for name in names[:-1]:
        print(f"{name}  decrypts older shards")
    print(f"{names[-1]}  encrypts new shards")


def turn(arguments: argparse.Namespace) -> None:
    """Draws a new secret and encrypts shards again with it."""
    from fl_vitlora.experiment import owner_keys

    settings = config.load(None, {"encryption.key_file": arguments.ring})
    name, shards = owner_keys.rotate_key(settings, arguments.shards)
    print(f"{arguments.ring}: the new secret is {name}; encrypted again: {len(shards)} shards")


def storage(arguments: argparse.Namespace) -> None:
    """Writes the storage keys of shards."""
    from fl_vitlora.experiment import owner_keys

    settings = config.load(None, {"encryption.key_file": arguments.key})
    files = owner_keys.hand_out_keys(settings, [arguments.shards], arguments.out)
    print(f"storage keys written to {arguments.out}: {', '.join(file.name for file in files)}")


def client(arguments: argparse.Namespace) -> None:
    """Exports the key of one client."""
    from fl_vitlora.experiment import owner_keys

    settings = config.load(arguments.config, {"encryption.key_file": arguments.ring})
    number = owner_keys.number_of(arguments.name, Path(arguments.config).parent)
    key = owner_keys.export_client(settings, number, arguments.out, arguments.id)
    print(f"{arguments.out}: the key of {key.party} for seed {key.seed}, from secret {key.name}")
