"""The program `fl-vitlora`, which is installed with the package.

An owner encrypts its images: ``fl-vitlora encrypt photos/ shards/ --config experiment.yaml``. Other
commands use a finished run. For example, ``fl-vitlora predict RUN photos/ --out photos.csv``
classifies images, and ``fl-vitlora export RUN FOLDER --form peft`` writes the model for another
library. ``fl-vitlora simulate`` runs an experiment, with the flags of `simulate.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fl_vitlora import __version__
from fl_vitlora.command_line import checking, decrypting, encrypting, key_rings, live_page
from fl_vitlora.command_line.exits import INTERRUPTED, USER_MISTAKE, fail
from fl_vitlora.command_line.report import add_report
from fl_vitlora.config.export_names import FORMS, READS
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.output import outlive_readers

if TYPE_CHECKING:
    from fl_vitlora.library.finished import FinishedRun

PROGRAM = "fl-vitlora"
SIMULATE = "simulate"  # all words behind this command belong to the program `simulate.py`


class ToolParser(argparse.ArgumentParser):
    """A parser that reports a user's mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Prints argparse's error message, and ends the program with code 2."""
        fail(f"{message} (see {self.prog} --help)", USER_MISTAKE, PROGRAM)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program; prints an error as one line and sets the exit code.

    Args:
        argv: The words of the command line after the program's name.

    Raises:
        SystemExit: If the program ends with an exit code other than 0.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == [SIMULATE]:
        simulate(words[1:])
        return
    outlive_readers()
    arguments = make_parser().parse_args(words)
    command: Callable[[argparse.Namespace], None] = arguments.command
    try:
        command(arguments)
    except UserError as error:
        fail(str(error), USER_MISTAKE, PROGRAM)
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}", USER_MISTAKE, PROGRAM)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED, PROGRAM)


def simulate(words: Sequence[str]) -> None:
    """Runs `simulate.py` with its own flags, for users who installed only the package.

    Args:
        words: The words of the command line after ``fl-vitlora simulate``.

    Raises:
        SystemExit: If the program ends with an exit code other than 0.
    """
    started = time.perf_counter()
    from fl_vitlora import command_line

    command_line.main(words, started)


def predict(arguments: argparse.Namespace) -> None:
    """Classifies images with the model of a run, and prints or writes the predictions."""
    from fl_vitlora.library.predictions import expect_ending

    if arguments.out is not None:
        expect_ending(arguments.out)  # before any image is classified
    found = _open(arguments).predict(
        arguments.images,
        encrypted=arguments.encrypted,
        client=arguments.client,
        best=arguments.best,
    )
    if arguments.out is not None:
        found.write(arguments.out)
        print(f"{len(found)} predictions in {arguments.out}")
        return
    for row in found.rows():
        print(f"{row['image']}\t{row['class']}\t{row['probability']:.3f}")


def export(arguments: argparse.Namespace) -> None:
    """Writes the model of a run into a folder, for timm, peft or onnxruntime, and uploads it."""
    folder = _open(arguments).export(
        arguments.folder,
        arguments.form,
        reads=arguments.reads,
        client=arguments.client,
        best=arguments.best,
        push_to_hub=arguments.push_to_hub,
    )
    print(f"exported to {folder}; its README.md says how to load it")


def make_parser() -> ToolParser:
    """Returns the parser of the program with its commands."""
    parser = ToolParser(
        prog=PROGRAM,
        description="Runs experiments, encrypts an owner's images for training, and uses the "
        "trained models of finished runs.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fl_vitlora {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser(
        SIMULATE, help="run an experiment; takes the flags of simulate.py", add_help=False
    )
    for command in (encrypting, decrypting, key_rings, live_page, checking):
        command.add(commands)
    _add_predict(commands)
    _add_export(commands)
    add_report(commands)
    return parser


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify images with the model of a run",
        description="Classifies images. The owner of the key gives plain images; they are "
        "encrypted before the model reads them. A service without the key gives images that "
        "the owner has encrypted, and adds --encrypted.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGES", help="image files, or folders of images"
    )
    parser.add_argument("--encrypted", action="store_true", help="the images are ciphertext (PNG)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write all probabilities to FILE.csv or FILE.json"
    )
    _add_common(parser)
    parser.set_defaults(command=predict)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write the model of a run for timm, peft or ONNX",
        description="Writes the trained model into a new folder, loads it again, and compares "
        "its outputs with those of the run. On request the folder is uploaded to the Hugging Face "
        "hub.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to write")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default=FORMS[0],
        help="the whole model for timm (default), the changes only for peft, or the whole model "
        "as a file of ONNX",
    )
    parser.add_argument(
        "--reads",
        choices=READS,
        default=READS[0],
        help="the images that the exported model reads (default: plain)",
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="NAME",
        help="upload the export to this private repository on the Hugging Face hub, OWNER/NAME, "
        "which must be new or empty; the access token is that of hf auth login or of HF_TOKEN",
    )
    _add_common(parser)
    parser.set_defaults(command=export)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--client",
        type=int,
        metavar="K",
        help="the number of the client, from 0, whose key is used; needed if every client has "
        "its own key",
    )
    parser.add_argument(
        "--best", action="store_true", help="use the model of the best round, not of the last"
    )
    parser.add_argument("--key-file", metavar="FILE", help="the key ring, if it was moved")
    parser.add_argument(
        "--weights", metavar="FILE", help="the pre-trained weights, if they were moved"
    )
    parser.add_argument(
        "--trust-strategy",
        nargs="+",
        default=[],
        metavar="NAME",
        help="code from elsewhere that the run may import, package.module:Class",
    )


def _open(arguments: argparse.Namespace) -> FinishedRun:
    """Opens the run that the command line names."""
    from fl_vitlora.library.finished import load_run

    moved = {"encryption.key_file": arguments.key_file, "model.weights": arguments.weights}
    given = {name: value for name, value in moved.items() if value is not None}
    return load_run(arguments.run, given, trust=arguments.trust_strategy)
