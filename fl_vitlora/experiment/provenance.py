"""The conditions on which the exact numbers of a run depend, apart from its configuration.

A resumed run must have the same weights, key, classes, strategy and type of device as at its
beginning. With other conditions, the resumed run would be a different experiment. Libraries and
code may change, because a run is often resumed after the user has corrected a mistake in the
strategy. A change of libraries or code is recorded in the result.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import fl_vitlora
from fl_vitlora.data.class_names import write_names
from fl_vitlora.state import State
from fl_vitlora.storage.checksummed import digest_of

LIBRARIES = {"PyTorch": "torch", "timm": "timm", "Flower": "flwr", "NumPy": "numpy"}
SHOWN = 12  # only this number of hexadecimal digits of a digest is stored


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The conditions on which the exact numbers of a run depend.

    A digest is a short checksum of data.

    Attributes:
        must_stay: The conditions that must be the same when a run is resumed: the device, the key,
            digests of the classes and the weights, and the strategy's class and parameters.
        may_change: The conditions that may change: the versions of libraries, and digests of the
            code of this package and of the strategy.
    """

    must_stay: Mapping[str, str]
    may_change: Mapping[str, str]

    @classmethod
    def of(
        cls,
        *,
        weights: State,
        class_names: Sequence[str],
        device: str,
        key: str,
        content: str = "",
        strategy: object,
        name: str,
        start: str = "",
    ) -> Self:
        """Returns the conditions of this process.

        Args:
            weights: The tensors of the public model before any training.
            class_names: The names of the classes, in the order of the head's outputs.
            device: The type of the server's device, such as "cpu".
            key: The id of the secret with which the images are encrypted.
            content: A digest of the content of shards that were made elsewhere; "" for other
                shards, which follow from the configuration and the key.
            strategy: The strategy of the run.
            name: The class and the parameters of the strategy, as one line of text.
            start: The finished run from whose model this run started, with the checksum of the
                model; "" if this run started from no other run.
        """
        digest = digest_of(weights, {})[:SHOWN]
        classes = hashlib.sha256(write_names(class_names).encode()).hexdigest()[:SHOWN]
        return cls(
            must_stay={
                "classes": classes,
                "device": device,
                "key": key,
                "weights": digest,
                "strategy": name,
                **({"start": start} if start else {}),
                **({"shards": content[:SHOWN]} if content else {}),
            },
            may_change=versions_and_code(strategy),
        )


def versions_and_code(strategy: object) -> dict[str, str]:
    """Returns the versions of libraries, and digests of this package and of the strategy's file.

    Example:
        >>> from strategies.fedavg import FedAvg
        >>> list(versions_and_code(FedAvg()))
        ['PyTorch', 'timm', 'Flower', 'NumPy', 'fl_vitlora', 'FedAvg']
    """
    versions = {name: importlib.metadata.version(module) for name, module in LIBRARIES.items()}
    package, kind = Path(fl_vitlora.__file__).parent, type(strategy)
    return {
        **versions,
        "fl_vitlora": code_digest(package),
        kind.__name__: _digest(_source(kind), package),
    }


def code_digest(package: Path) -> str:
    """Returns a digest of all Python files of a package, at any depth, and of their names.

    Args:
        package: The folder of the package.

    Returns:
        The first hexadecimal digits of the digest.
    """
    return _digest(package.rglob("*.py"), package)


def changes(was: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the entries that differ between two dictionaries, with the old and the new value.

    Example:
        >>> changes({"NumPy": "2.2", "timm": "1.0"}, {"NumPy": "2.3", "timm": "1.0"})
        {'NumPy': ['2.2', '2.3']}
    """
    names = dict.fromkeys([*was, *now])
    pairs = {name: [was.get(name, "none"), now.get(name, "none")] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _source(kind: type) -> Iterator[Path]:
    """Yields the file in which a class is defined; yields no file for a class made in memory."""
    try:
        yield Path(inspect.getfile(kind))
    except (OSError, TypeError):
        return


def _digest(files: Iterator[Path], root: Path) -> str:
    """Returns a digest of the content of files and of their names relative to a folder."""
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name.as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:SHOWN]
