"""In whose coordinates the patch embedding is: the server's, or those of a party's ciphertext.

Under a party's key the entries of a patch, and the patches of an image, stand in another order and
partly with another sign. A patch embedding E that reads such ciphertext has its columns in that
order too; where owners have different keys, their E's cannot simply be averaged. With T the key
adaptation of a party (`encryption.holder.KeyHolder.adapt`, a signed permutation) and E₀ the public,
pre-trained patch embedding, a party trains from

=============  ==========================  ===========================
               model adapted to the key    model not adapted
=============  ==========================  ===========================
``aggregate``  E                           E
``aligned``    T(E)                        E₀ + T(E - E₀)
``local``      its own; at first T(E₀)     its own; at first E₀
=============  ==========================  ===========================

where E is what the server sent. It sends back the difference that training made: as it is, as
T⁻¹(difference) where aligned, or not at all where local. The server's first E is T(E₀) where all
parties share the key, the model is adapted and E aggregated as it is; else it is E₀. Position
embeddings, where they are trained (method full), go the same way.

Aligned and adapted, with any keys: the whole run is the run on plain images [arXiv 2309.02556 gives
T; that a signed permutation commutes with SGD, Adam and AdamW is one line of algebra]; where blocks
have keys of their own, it is the run on plain images of a model with a kernel for every patch.
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
    """What turns the server's tensors into a party's, and back.

    Attributes:
        base: The reader that the party's model starts from, trained or not.
        initial: The server's first tensors.
        holder: Of the party's key; none where nothing has to be turned.
        party: Its name.
        aligned: Whether differences are exchanged in plain coordinates.
        adapted: Whether the party's model is adapted to its key.
    """

    base: PatchReader
    initial: State
    holder: KeyHolder | None
    party: str
    aligned: bool
    adapted: bool

    def to_client(self, model: State) -> State:
        """Turns the server's tensors into those that the party trains from."""
        if self.holder is None or WEIGHT not in model:
            return model
        first, now = self._reader(self.initial), self._reader(model)
        if self.aligned and self.adapted:
            turned = self.holder.adapt(now, self.party)
        elif self.aligned:
            turned = _plus(first, self.holder.adapt(_minus(now, first), self.party))
        else:  # a key of its own, but aggregated as it is
            turned = _plus(self.holder.adapt(first, self.party), _minus(now, first))
        return with_exchanged_reader(model, turned)

    def to_server(self, delta: State) -> State:
        """Turns the difference that the party's training made into the server's."""
        if self.holder is None or not self.aligned or WEIGHT not in delta:
            return delta
        return with_exchanged_reader(delta, self.holder.restore(self._reader(delta), self.party))

    def difference_to_client(self, difference: State) -> State:
        """Turns a difference in the server's coordinates into the party's; undoes `to_server`."""
        if self.holder is None or not self.aligned or WEIGHT not in difference:
            return difference
        turned = self.holder.adapt(self._reader(difference), self.party)
        return with_exchanged_reader(difference, turned)

    def _reader(self, state: Mapping[str, Tensor]) -> PatchReader:
        return exchanged_reader(state, self._patches)

    @property
    def _patches(self) -> int:
        assert self.holder is not None
        return self.holder.cipher.geometry.blocks


def server_reader(config: Config, origin: PatchReader, holder: KeyHolder) -> PatchReader:
    """Returns what the server's model reads with at first; see the module.

    Raises:
        UserError: When a step has no adaptation for this model.
    """
    if not reader_is_stored(config):
        return origin
    if start_is_adapted(config):
        return holder.adapt(origin, "server")
    blocks = holder.cipher.geometry.blocks
    if not config.encryption.adapt:  # differences are turned, positions stay unless exchanged
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
    """Makes the coordinates of one party.

    Args:
        config: Scope of the keys, adaptation, policy.
        origin: What the public model reads with.
        start: What the server's model reads with at first.
        initial: The server's first tensors.
        holder: Of the party's key; needed where `policies.clients_turn`.
        party: Its name.

    Returns:
        The coordinates; those of the server itself where nothing has to be turned.
    """
    adapted = adapts(config)
    own = adapted and not common_key(config)
    turned = aligns(config) or (own and exchanges_reader(config))
    if holder is None and (turned or own):
        raise UserError(f"{party} has no key ring, but must turn its patch embedding by its key")
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
    position = a.position
    if a.position is not None and b.position is not None:
        position = a.position + sign * b.position
    return PatchReader(weight=a.weight + sign * b.weight, position=position)
