"""Converts a patch embedding between the server and a party whose images have another key.

A party's key changes the order of the entries of a patch, the order of the patches of an image, and
the sign of some entries. A patch embedding E that reads such ciphertext has its columns in the same
order and with the same signs, which are called the coordinates of the party. So if owners have
different keys, their matrices E cannot simply be averaged. Let T be the key adaptation of a party
(`encryption.holder.KeyHolder.adapt`, a signed permutation), and E₀ the public, pre-trained patch
embedding. A party starts its training from

=============  ==========================  ===========================
               model adapted to the key    model not adapted
=============  ==========================  ===========================
``aggregate``  E                           E
``aligned``    T(E)                        E₀ + T(E - E₀)
``local``      its own E; at first T(E₀)   its own E; at first E₀
=============  ==========================  ===========================

where E is the matrix that the server sent. ``aggregate``, ``aligned`` and ``local`` are policies.
After training, the party sends back the change of its matrix. Under ``aggregate`` the change is
sent as it is, under ``aligned`` T⁻¹(change) is sent, and under ``local`` nothing is sent. The
server's first E is T(E₀) if all parties share one key, the model is adapted and the policy is
``aggregate``; otherwise the first E is E₀. Position embeddings are converted in the same way if
they are trained (method full).

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
        base: The patch reader with which the party's model starts, whether it is trained or frozen.
        initial: The tensors of the server's first model.
        holder: The holder of the party's key; None if nothing needs to be converted.
        party: The name of the party.
        aligned: True if changes of tensors are sent in the coordinates of plain images.
        adapted: True if the party's model is adapted to its key.
    """

    base: PatchReader
    initial: State
    holder: KeyHolder | None
    party: str
    aligned: bool
    adapted: bool

    def to_client(self, model: State) -> State:
        """Converts the server's tensors to the tensors with which the party starts training."""
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
        """Converts the change that the party's training made to the server's coordinates."""
        if self.holder is None or not self.aligned or WEIGHT not in delta:
            return delta
        return with_exchanged_reader(delta, self.holder.restore(self._reader(delta), self.party))

    def difference_to_client(self, difference: State) -> State:
        """Converts a change of tensors to the party's coordinates; the inverse of `to_server`."""
        if self.holder is None or not self.aligned or WEIGHT not in difference:
            return difference
        turned = self.holder.adapt(self._reader(difference), self.party)
        return with_exchanged_reader(difference, turned)

    def _reader(self, state: Mapping[str, Tensor]) -> PatchReader:
        """Returns the patch reader that exchanged tensors contain."""
        return exchanged_reader(state, self._patches)

    @property
    def _patches(self) -> int:
        assert self.holder is not None
        return self.holder.cipher.geometry.blocks


def server_reader(config: Config, origin: PatchReader, holder: KeyHolder) -> PatchReader:
    """Returns the patch reader of the server's first model, as the module's text describes.

    Args:
        config: The experiment.
        origin: The patch reader of the public model.
        holder: The holder of the key.

    Raises:
        UserError: If a cipher step has no adaptation for this model.
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
    """Returns the coordinates of one party.

    Args:
        config: The experiment, with the scope of the keys, the adaptation and the policy.
        origin: The patch reader of the public model.
        start: The patch reader of the server's first model.
        initial: The tensors of the server's first model.
        holder: The holder of the party's key; it is needed if `policies.clients_turn` is true.
        party: The name of the party.

    Returns:
        The coordinates of the party. They equal the server's coordinates if nothing needs to be
        converted.

    Raises:
        UserError: If the party has no key but must convert its patch embedding.
    """
    adapted = adapts(config)
    own = adapted and not common_key(config)
    turned = aligns(config) or (own and exchanges_reader(config))
    if holder is None and (turned or own):
        raise UserError(f"{party} has no key ring, but must adapt its patch embedding to its key")
    own_base = holder is not None and adapted and (own or aligns(config))
    return Coordinates(
        base=holder.adapt(origin, party) if holder is not None and own_base else start,
        initial=initial,
        holder=holder if turned else None,
        party=party,
        aligned=aligns(config),
        adapted=adapted,
    )


def _plus(a: PatchReader, b: PatchReader) -> PatchReader:
    return _combine(a, b, 1)


def _minus(a: PatchReader, b: PatchReader) -> PatchReader:
    return _combine(a, b, -1)


def _combine(a: PatchReader, b: PatchReader, sign: int) -> PatchReader:
    """Returns a + sign · b, entry by entry; keeps the position of a if a or b has none."""
    position = a.position
    if a.position is not None and b.position is not None:
        position = a.position + sign * b.position
    return PatchReader(weight=a.weight + sign * b.weight, position=position)
