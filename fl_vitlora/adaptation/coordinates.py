"""Converts a patch embedding between the server and a party whose images have another key.

A party is a client, or the test images. The key of a party changes the order of the entries of a
patch, the order of the patches of an image, and the sign of some entries. A patch embedding E that
reads such ciphertext has its columns in the order of the ciphertext's entries, with the signs of
these entries. This order and these signs are called the coordinates of the party. Therefore the
matrices E of clients with different keys cannot simply be averaged. Let T be the key adaptation of
a party (`encryption.holder.KeyHolder.adapt`, a signed permutation). Let E₀ be the public,
pre-trained patch embedding. A party starts its training from the patch embedding in this table:

=============  ==========================  ===========================
               model adapted to the key    model not adapted
=============  ==========================  ===========================
``aggregate``  E                           E
``aligned``    T(E)                        E₀ + T(E - E₀)
``local``      its own E; at first T(E₀)   its own E; at first E₀
=============  ==========================  ===========================

Here E is the matrix that the server sent. If the model is adapted and parties have different keys,
``aggregate`` begins with T(E₀) + E - E₀ instead of E. ``aggregate``, ``aligned`` and ``local`` are
the values of the setting `finetuning.patch_embedding`. After training, the party sends the change
of its matrix to the server. Under ``aggregate`` the party sends the change itself. Under
``aligned`` it sends T⁻¹(change), and under ``local`` it sends nothing. The server's first E is
T(E₀) if all parties share one key, the model is adapted and the policy is ``aggregate``; otherwise
the first E is E₀. Position embeddings are converted in the same way if they are trained (method
full).

With policy ``aligned`` and an adapted model, the run gives the same result as a run on plain
images, for any keys. (arXiv 2309.02556 gives T; a signed permutation commutes with SGD, Adam and
AdamW.) If every block has its own key, the run gives the same result as a run on plain images with
a model that has one kernel per patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fl_vitlora.adaptation.policies import (
    adapts,
    aligns,
    common_key,
    exchanges_reader,
    reader_is_stored,
    start_is_adapted,
)
from fl_vitlora.config import Config
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError
from fl_vitlora.models.reading import WEIGHT, exchanged_reader, with_exchanged_reader
from fl_vitlora.state import State


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Converts tensors from the server's coordinates to a party's, and back.

    Attributes:
        base: The patch reader (patch and position embedding) with which the party's model starts.
        initial: The exchanged tensors of the server's first model, by name.
        holder: The object that has the party's key; None if nothing needs to be converted.
        party: The name of the party, for example "client 3".
        aligned: True if changes of tensors are sent in the coordinates of plain images, so that the
            server can average them.
        adapted: True if the party's model is adapted to the party's key.
    """

    base: PatchReader
    initial: State
    holder: KeyHolder | None
    party: str
    aligned: bool
    adapted: bool

    def to_client(self, model: State) -> State:
        """Converts the server's tensors to those with which the party starts training."""
        if self.holder is None or WEIGHT not in model:
            return model
        first, now = self._reader(self.initial), self._reader(model)
        if self.aligned and self.adapted:
            turned = self.holder.adapt(now, self.party)
        elif self.aligned:
            turned = _plus(first, self.holder.adapt(_minus(now, first), self.party))
        else:  # the party has its own key, and changes are aggregated without conversion
            turned = _plus(self.holder.adapt(first, self.party), _minus(now, first))
        return with_exchanged_reader(model, turned)

    def to_server(self, delta: State) -> State:
        """Converts a change of the party's tensors to the server's coordinates."""
        if self.holder is None or not self.aligned or WEIGHT not in delta:
            return delta
        return with_exchanged_reader(delta, self.holder.restore(self._reader(delta), self.party))

    def difference_to_client(self, difference: State) -> State:
        """Converts a change of tensors to the party's coordinates; inverts `to_server`."""
        if self.holder is None or not self.aligned or WEIGHT not in difference:
            return difference
        turned = self.holder.adapt(self._reader(difference), self.party)
        return with_exchanged_reader(difference, turned)

    def _reader(self, state: Mapping[str, Tensor]) -> PatchReader:
        """Returns the patch reader that is contained in exchanged tensors."""
        return exchanged_reader(state, self._patches)

    @property
    def _patches(self) -> int:
        assert self.holder is not None
        return self.holder.cipher.geometry.blocks


def server_reader(config: Config, origin: PatchReader, holder: KeyHolder) -> PatchReader:
    """Returns the patch reader (patch and position embedding) of the server's first model.

    Args:
        config: The settings of the experiment.
        origin: The patch reader of the public, pre-trained model.
        holder: The object that has the key to which the model is adapted.

    Raises:
        UserError: If the model cannot be adapted to the key of a cipher step.
    """
    if not reader_is_stored(config):
        return origin
    if start_is_adapted(config):
        return holder.adapt(origin, "server")
    blocks = holder.cipher.geometry.blocks
    if not config.encryption.adapt:
        # Only changes are converted. Position embeddings do not change unless they are exchanged.
        turned = replace(origin, position=origin.weight.new_empty(blocks, 0))
    else:
        turned = origin
    per_patch = holder.adapt(turned, "server").weight.ndim == 3
    return origin.with_weight(origin.weight_of_blocks(blocks)) if per_patch else origin


def of_party(
    config: Config,
    *,
    origin: PatchReader,
    start: PatchReader,
    initial: State,
    holder: KeyHolder | None,
    party: str,
) -> Coordinates:
    """Returns the object that converts tensors between the server and one party.

    Args:
        config: The settings of the experiment: which images share a key, whether models are
            adapted, and what happens to the patch embeddings.
        origin: The patch reader of the public, pre-trained model.
        start: The patch reader of the server's first model.
        initial: The exchanged tensors of the server's first model, by name.
        holder: The object that has the party's key; needed if `policies.clients_turn` returns True.
        party: The name of the party, for example "client 3".

    Returns:
        The coordinates of the party, which convert nothing if the party uses the server's
        coordinates.

    Raises:
        UserError: If the party must convert its patch embedding but has no key.
    """
    adapted, aligned = adapts(config), aligns(config)
    own = adapted and not common_key(config)
    turned = aligned or (own and exchanges_reader(config))
    if holder is None and (turned or own):
        raise UserError(f"{party} has no key ring, but needs its key to adapt its patch embedding")
    own_base = holder is not None and adapted and (own or aligned)
    return Coordinates(
        base=holder.adapt(origin, party) if holder is not None and own_base else start,
        initial=initial,
        holder=holder if turned else None,
        party=party,
        aligned=aligned,
        adapted=adapted,
    )


def _plus(a: PatchReader, b: PatchReader) -> PatchReader:
    return _combine(a, b, 1)


def _minus(a: PatchReader, b: PatchReader) -> PatchReader:
    return _combine(a, b, -1)


def _combine(a: PatchReader, b: PatchReader, sign: int) -> PatchReader:
    """Returns a + sign · b; keeps the position embedding of a if a or b has none."""
    position = a.position
    if a.position is not None and b.position is not None:
        position = a.position + sign * b.position
    return PatchReader(weight=a.weight + sign * b.weight, position=position)
