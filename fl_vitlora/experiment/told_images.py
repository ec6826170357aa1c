"""Makes the line of text that tells the user which images a run uses, and how it changes them."""

from __future__ import annotations

from collections.abc import Sequence

from fl_vitlora.config import Config
from fl_vitlora.data.clients import list_some
from fl_vitlora.data.images import Indices, Name
from fl_vitlora.data.sources import Source
from fl_vitlora.data.treatment import tell_treatment


def tell_images(
    source: Source, config: Config, validation: Sequence[Indices], names: Sequence[Name]
) -> str:
    """Returns the line of text about the images of a run.

    Args:
        source: The images that were found.
        config: The configuration of the experiment.
        validation: The positions of the validation images, in one array or in several arrays.
        names: The names of the clients; empty if the data set does not state the clients of the
            images.
    """
    told = source.told
    if validation and source.validation is None:
        held = sum(map(len, validation))
        told += f"; {held:,} of the training images are held out for validation"
    told += tell_treatment(config.data)
    if names:
        return f"{told}; clients: {list_some(names)}"
    if source.train.owners is None:
        return told
    return (
        f"{told}; the images of all clients are mixed and divided again (data.partition="
        f"{config.data.partition}; with data.partition=natural each client keeps its images)"
    )
