"""The views of the adversaries: what attacks get, with one Python class for each adversary.

No view has a key or the seed of the run. Keys belong to `truth.Truth`, which no attack gets.
Only `InsiderView` has plain images of an owner, because its adversary is assumed to know them.

Letters in shapes: M images, Q known images, C channels, H × W pixels, L classes, N patches, D
entries of a patch, W width, p patch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor, nn

from fl_vitlora.attacks.clock import UNLIMITED, Clock
from fl_vitlora.communication.fixed_point import Words
from fl_vitlora.config import Config
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.federation.observer import Sight
from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.privacy.agreement import Signatures
from fl_vitlora.privacy.secure_sum import Roster, Seeds
from fl_vitlora.state import State
from fl_vitlora.strategy import SEVERAL


@dataclass(frozen=True, kw_only=True)
class Public:
    """The data about a run that every adversary knows.

    Attributes:
        settings: The settings of the run. The seed and the path of the key ring are left out.
        rates: The learning rate of each round.
        classes: The number L of classes.
        patch_size: The side p of a patch in pixels.
        cipher: The cipher of the run, which has no key.
        reader: The patch reader (patch and position embedding) of the public, pre-trained model.
        images: Plain images of the same kind as those of the owners, uint8 (M, C, H, W). No client
            trains on them.
        labels: The labels of these images, int64 (M,); None if they are not known.
        no_common_order: The reason why the blocks of a client's images do not share one order and
            signs of their entries. The text is empty if all blocks share them.
    """

    settings: Config
    rates: tuple[float, ...]
    classes: int
    patch_size: int
    cipher: Cipher
    reader: PatchReader
    images: Tensor
    labels: Tensor | None = None
    no_common_order: str = ""

    @property
    def grey(self) -> bool:
        """Returns True if the channels of all public images are equal."""
        return bool((self.images == self.images[:, :1]).all())

    @property
    def one_key(self) -> bool:
        """Returns True if all clients encrypt with one key."""
        return self.settings.encryption.scope != "client"


@dataclass(frozen=True, kw_only=True)
class View:
    """The view of one adversary: the data that this adversary has.

    Attributes:
        adversary: The name of the adversary.
        public: The data that every adversary knows.
        reader: The patch reader of the last model that the adversary has; None if it has none.
        clock: The clock with the time budget of the attack. A long attack must call the method
            `check` of the clock between its steps.
    """

    adversary: ClassVar[str]

    public: Public
    reader: PatchReader | None = None
    clock: Clock = field(default=UNLIMITED, repr=False)


@dataclass(frozen=True, kw_only=True)
class ServerView(View):
    """The server: it follows the protocol, and keeps every model and every update that it sees.

    Attributes:
        rounds: The data of each recorded round, in order. Under secure aggregation each round has
            only the mean of all updates. The sequence is empty if the run recorded no updates.
        model: The model with its frozen weights, in the coordinates of the server. The trained
            tensors are those of the public model; `rounds` has the trained tensors of each round.
            None if the server does not have the patch and position embedding.
    """

    adversary: ClassVar[str] = "server"

    rounds: Sequence[Sight] = ()
    model: nn.Module | None = field(default=None, repr=False)

    def lacks_updates(self) -> str:
        """Returns why the server has no updates; empty if it has some."""
        recorded = any(sight.updates for sight in self.rounds)
        return "" if recorded else "the run recorded no updates; start it with --record-updates"

    def lacks_single_updates(self) -> str:
        """Returns why the server has no update of a single client; empty if it has some."""
        sums = any(update.client == SEVERAL for s in self.rounds for update in s.updates)
        told = "the server has only the sum of all updates (secure aggregation)"
        return self.lacks_updates() or (told if sums else "")

    def lacks_patch_embedding(self) -> str:
        """Returns why the updates have no patch embedding; empty if they have one."""
        changed = any(change.any() for _, change in self.patch_embedding_changes())
        return self.lacks_updates() or ("" if changed else "no client sends a patch embedding")

    def patch_embedding_changes(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the changes of the patch embedding that clients sent.

        Yields:
            Pairs: the number of the client, or `SEVERAL`; and the change, (W, D), or (N, W, D) if
            every patch has its own kernel.
        """
        for sight in self.rounds:
            for update in sight.updates:
                if WEIGHT in update.delta:  # the patch embedding may be frozen
                    change = update.delta[WEIGHT]
                    yield update.client, change.flatten(1) if change.ndim == 4 else change


@dataclass(frozen=True, kw_only=True)
class InformedServerView(ServerView):
    """A server that also has candidate images of each client, with their labels.

    Attributes:
        model: The public model with the tensors of the fine-tuning method and the patch reader with
            which the server began; None if the server cannot compute the outputs of the clients'
            models.
        images: The candidates as this model reads them, uint8 (M, C, H, W).
        labels: The labels of the candidates, int64 (M,).
        owners: For each candidate, the client that may have trained on it, int64 (M,).
    """

    adversary: ClassVar[str] = "informed server"

    model: nn.Module | None = field(repr=False)
    images: Tensor
    labels: Tensor
    owners: Tensor


@dataclass(frozen=True, kw_only=True)
class Order:
    """The message that a hostile server sends to one client in place of the model of a round.

    Attributes:
        tensors: All exchanged tensors, with any values.
        round: The number of the round that the message states.
        frozen: The endings of the names of tensors that the client must not train.
        rate: The learning rate that the message states.
    """

    tensors: State = field(repr=False)
    round: int
    frozen: tuple[str, ...] = ()
    rate: float


class SumClient(Protocol):
    """A client to which a hostile server sends the messages of secure sums.

    The client answers as it answers every server, and has the same memory as in a run. If the
    client refuses a message, the method returns the client's reason as a text.
    """

    def key(self) -> bytes:
        """Greets the client, and returns its public key for the sums of this run."""

    def vouch(self, roster: Roster) -> bytes | str:
        """Asks the client to sign a roster."""

    def train(self, order: Order, roster: Roster, signatures: Signatures) -> Words | str:
        """Sends an `Order` with a signed roster, and returns the update as masked integers."""

    def reveal(self, roster: Roster, dropped: frozenset[int]) -> Seeds | str:
        """Asks the client for the seeds that it shares with clients that dropped out."""


def _no_clients() -> Mapping[int, SumClient]:
    return {}


@dataclass(frozen=True, kw_only=True)
class HostileServerView(View):
    """A server that does not follow the protocol: it sends any message to one client.

    Attributes:
        client: The number of the client.
        model: The model with its frozen weights, in the coordinates of the server; None if the
            server does not have the patch and position embedding.
        start: The exchanged tensors with which an honest server begins.
        ask: A function that sends an `Order` to the client. The client answers as it answers every
            server: it trains on its own images and sends its update, which is decoded. If the
            client refuses the message, the result is the client's reason, as a text.
        accepted: A function that changes an `Order` as little as possible, so that a client with a
            guard accepts the message.
        sum_clients: A function that returns all clients of a new run with secure sums, by number.
    """

    adversary: ClassVar[str] = "hostile server"

    client: int
    model: nn.Module | None = field(repr=False)
    start: State = field(repr=False)
    ask: Callable[[Order], State | str] = field(repr=False)
    accepted: Callable[[Order], Order] = field(default=lambda order: order, repr=False)
    sum_clients: Callable[[], Mapping[int, SumClient]] = field(default=_no_clients, repr=False)


@dataclass(frozen=True, kw_only=True)
class OutsiderView(View):
    """An outsider: it has the final model with its patch reader, and nothing from the training."""

    adversary: ClassVar[str] = "outsider"


@dataclass(frozen=True, kw_only=True)
class ShardView(View):
    """An adversary with the shard of one client.

    Attributes:
        client: The number of the client.
        images: The ciphertext of the client, uint8 (M, C, H, W); None if it cannot be read.
        labels: The labels of the images, int64 (M,); None if they cannot be read.
        sealed: The reason why the shard cannot be read. The text is empty if it can be read.
    """

    client: int
    images: Tensor | None
    labels: Tensor | None
    sealed: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerView(ShardView):
    """The worker that trains for one client: its open shard, and the model in its memory."""

    adversary: ClassVar[str] = "worker"


@dataclass(frozen=True, kw_only=True)
class ThiefView(ShardView):
    """A thief of a worker's disk, without key ring and storage key."""

    adversary: ClassVar[str] = "thief"


@dataclass(frozen=True, kw_only=True)
class InsiderView(ShardView):
    """A worker that is assumed to know a few plain images of its client.

    The worker may have contributed these images, or they may be public.

    Attributes:
        known: The first Q plain images of the client, uint8 (Q, C, H, W). The plain image
            ``known[i]`` and the ciphertext ``images[i]`` are a pair.
    """

    adversary: ClassVar[str] = "insider"

    known: Tensor


@dataclass(frozen=True, kw_only=True)
class UserView(View):
    """A user of the final model, who asks it about candidate images and knows their labels.

    Attributes:
        logits: The outputs of the model, (M, L). The model reads each candidate under the key of
            its owner, in the same way as it reads test images of this owner.
        labels: The labels of the candidates, int64 (M,).
    """

    adversary: ClassVar[str] = "user"

    logits: Tensor
    labels: Tensor


ADVERSARIES: tuple[type[View], ...] = (
    ServerView,
    InformedServerView,
    HostileServerView,
    WorkerView,
    ThiefView,
    InsiderView,
    OutsiderView,
    UserView,
)
