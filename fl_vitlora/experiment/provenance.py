"""What the bits of a run depend on, and its configuration does not tell.

A run that goes on must find the weights, the key and the kind of device that it began with: with
others it would be another run. Another version of a library, or a strategy whose code was mended
after it had failed, may be just what it is to go on with; then that is told.
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
SHOWN = 12  # hexadecimal digits of a digest


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Under which a run is made.

    Attributes:
        must_stay: All that a run cannot go on without: device, key, digests of classes and weights,
            and the strategy's class and parameters.
        may_change: Versions of libraries, and digests of this package's and the strategy's code.
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
        strategy: object,
        name: str,
    ) -> Self:
        """Looks at what there is now.

        Args:
            weights: The tensors of the public model before any training.
            class_names: The names of the classes, in the order of the head's outputs.
            device: Kind of the server's device.
            key: Id of the secret that the images are encrypted under.
            strategy: An instance.
            name: Its class and parameters, in one line.
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
            },
            may_change=versions_and_code(strategy),
        )


def versions_and_code(strategy: object) -> dict[str, str]:
    """Names versions of libraries, this package's code and that of the strategy's file.

    Example:
        >>> from strategies.fedavg import FedAvg
        >>> list(versions_and_code(FedAvg()))
        ['PyTorch', 'timm', 'Flower', 'NumPy', 'fl_vitlora', 'FedAvg']
    """
    versions = {name: importlib.metadata.version(module) for name, module in LIBRARIES.items()}
    here, kind = Path(fl_vitlora.__file__).parent, type(strategy)
    return {
        **versions,
        "fl_vitlora": _digest(here.rglob("*.py"), here),
        kind.__name__: _digest(_source(kind), here),
    }


def changes(was: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    """Lists what is not as it was.

    Example:
        >>> changes({"NumPy": "2.2", "timm": "1.0"}, {"NumPy": "2.3", "timm": "1.0"})
        {'NumPy': ['2.2', '2.3']}
    """
    names = dict.fromkeys([*was, *now])
    pairs = {name: [was.get(name, "none"), now.get(name, "none")] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _source(kind: type) -> Iterator[Path]:
    """Finds the file that a class is written in, if it is in one."""
    try:
        yield Path(inspect.getfile(kind))
    except (OSError, TypeError):
        return


def _digest(files: Iterator[Path], root: Path) -> str:
    """Computes a digest of files and of their names below a folder."""
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name.as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:SHOWN]
