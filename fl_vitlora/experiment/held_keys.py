"""Says whether everybody who has the model of a run also gets the key, or a part of the key."""

from __future__ import annotations

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config
from fl_vitlora.models.start import start_of


def holds_key(config: Config, reads: str) -> bool:
    """Returns True if everybody who has the model of a run, and the public model, gets the key.

    The key was put into the model for ciphertext if the run adapted its model, or if each client
    turns the server's model into its own coordinates. The model also contains the key if the run
    started from a model that contained the key, and the new model reads the same ciphertext.

    Args:
        config: The settings of the run, in which paths lead to the files that the run used.
        reads: The images that the model reads: "plain" or "ciphertext".

    Raises:
        UserError: If the run started from the model of another run whose file is missing.
    """
    if reads != "ciphertext":
        return False
    if policies.adapts(config) or policies.clients_turn(config):
        return True
    start = start_of(config.model)
    return start is not None and start.holds_key


def reveals_part_of_key(config: Config, reads: str) -> bool:
    """Returns True if the patch embedding of a model was trained on ciphertext.

    The patch embedding was trained on ciphertext either in this run, or in an earlier run from
    whose model this run started.

    Args:
        config: The settings of the run, in which paths lead to the files that the run used.
        reads: The images that the model reads: "plain" or "ciphertext".

    Raises:
        UserError: If the run started from the model of another run whose file is missing.
    """
    if reads != "ciphertext":
        return False
    if config.encryption.steps and policies.exchanges_reader(config):
        return True
    start = start_of(config.model)
    return start is not None and start.reveals_part_of_key
