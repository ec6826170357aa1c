"""A hostile server reads single images of a client, by crafted patch embeddings and heads.

The server sends the following messages to one client, in place of the model:

1. An honest model of which only the bias of the head is trained. The class whose bias falls the
   most in the answer is a class that the client does not have.
2. A crafted model that lets all images through (`crafting`). The answer is the mean image.
3. Crafted models that let one image through. The projection decides which image it is. For each
   image the server sends at least three models, each with a steeper gate than the model before. The
   answer to one model determines the level at which the next model lets images through.

Each message takes a round. No message has frozen weights, because clients load them by themselves.
If a client refuses a message (`flower.client.guard`), the server goes on with messages that the
guard accepts. These messages claim to be in the last round, and are as close to the crafted models
as possible. The server then also counts the mean image as an answer, because the mean image is the
image itself if a client has only one image.

In secure sums the server sends each message to all clients, and gives this client almost the whole
weight, so that the sum is the answer of this client (`single_out`).

The patches that the server reads are ciphertext, with one exception: they are plain patches if the
client transforms a model that was adapted to plain images (``finetuning.patch_embedding=aligned``
with ``encryption.adapt=true``).

Letters in shapes: N patches, D entries of a patch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.crafting import (
    DEPTH,
    HEAD_BIAS,
    NAMES,
    Sensitivity,
    crafted,
    read,
    sensitivity,
)
from fl_vitlora.attacks.pictures import Pictures, beside_nearest, from_patches
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.single_out import SingleOut
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.unmasking import lacks_clients
from fl_vitlora.attacks.views import HostileServerView, Order
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.state import State

IMAGES = "answers that are an image of the client"
DIFFERENT = "different images recovered"
ERROR, CHANCE = "error of the answers", "error of another image"
REFUSED = "messages that the client refused"
CLOSE = 0.01  # largest relative error of an answer that counts as an image of the client
SLOPES = (20.0, 100.0, 400.0)  # slopes of three gates; the unit is 1 / spread of projections
EXPECTED = 2.3  # distance of the largest projection from the mean projection, in spreads
KNOWN, KEYS = 100, 4  # public images, and made-up keys, from which the spread is estimated
MOST = 4  # images that the server asks for; each image takes three messages or more
TRIES = 4  # levels that are tried for one model
LINEAR = 0.01  # largest step that is proportional to the gradient, as a share of the learning rate


@dataclass(frozen=True)
class Stolen:
    """A guess: the images of one client.

    Attributes:
        client: The number of the client.
        patches: The patches of each answer as the model reads them, float64 (N, D) each.
        messages: The number of messages that were sent.
        refused: The number of messages that the client refused.
        patch_size: The side of a patch in pixels.
        plain: True if the client trains in plain coordinates.
    """

    client: int
    patches: Sequence[Tensor]
    messages: int
    refused: int
    patch_size: int
    plain: bool


class RefusedError(Exception):
    """The error that is raised when the client refuses a message."""


@dataclass(frozen=True, kw_only=True)
class CraftedEmbedding(Attack[HostileServerView, Stolen]):
    """The attack on one client, for as many images as `images`, and at most `MOST`."""

    adversaries = (HostileServerView,)
    goal = "Single images of a client, by models that let one image through."
    figures = (IMAGES, DIFFERENT, ERROR, CHANCE, REFUSED)

    def lacks(self, view: HostileServerView) -> str:
        """Returns why the server cannot craft a model that lets one image through."""
        settings, start = view.public.settings, view.start
        if settings.privacy.secure_aggregation and (reason := lacks_clients(view)):
            return reason
        if view.model is None:
            return "the server does not have the patch embedding"
        if not set(NAMES) <= set(start):
            return f"it needs all of {', '.join(NAMES)} to be exchanged"
        if start[WEIGHT].ndim != 4:
            return "every patch has its own kernel"
        aligned = settings.finetuning.patch_embedding == "aligned" and settings.encryption.steps
        if aligned and not settings.encryption.adapt:
            return "only the client can transform the patch embedding that it sends"
        patches = view.public.cipher.geometry.blocks
        width = len(start[WEIGHT])
        return "" if patches < width else f"the {patches} patches exceed the model's width {width}"

    def guess(self, view: HostileServerView) -> Stolen:
        """Asks the client for its mean image, and then for single images."""
        plain = view.public.settings.finetuning.patch_embedding == "aligned"
        conversation = Conversation(view, plain)
        found: list[Tensor] = []
        with contextlib.suppress(RefusedError):
            found += conversation.images(min(self.images, MOST))
        return Stolen(
            client=view.client,
            patches=found,
            messages=conversation.messages,
            refused=conversation.refused,
            patch_size=view.public.patch_size,
            plain=plain,
        )

    def score(self, guess: Stolen, truth: Truth) -> Sequence[Figure]:
        """Compares each answer with all images of the client.

        The figure by chance is the error of another image under the same key.
        """
        owned = truth.owned[guess.client]
        own = _blocks(owned.plain if guess.plain else owned.ciphertext, guess.patch_size)
        others = _blocks(owned.others if guess.plain else owned.others_ciphertext, guess.patch_size)
        errors = [_errors(own, patches) for patches in guess.patches]
        smallest = [float(each.min()) for each in errors]
        right = [int(each.argmin()) for each in errors if float(each.min()) <= CLOSE]
        chance = [float(_errors(own, image).min()) for image in others]
        asked = max(1, len(errors))
        return [
            Figure(name=IMAGES, value=100 * len(right) / asked, floor=0, ceiling=100),
            Figure(name=DIFFERENT, value=len(set(right)), unit=""),
            Figure(name=ERROR, value=100 * median(smallest or [1.0])),
            Figure(name=CHANCE, value=100 * median(chance)),
            Figure(name=REFUSED, value=100 * guess.refused / max(1, guess.messages)),
        ]

    def pictures(self, guess: Stolen, truth: Truth) -> Pictures:
        """Returns the answers of the client, each beside the image most similar to it."""
        owned = truth.owned[guess.client]
        height, width = owned.plain.shape[-2:]
        if not guess.patches:
            return {}
        images = from_patches(torch.stack(list(guess.patches)), (height, width), guess.patch_size)
        return beside_nearest(owned, images, plain=guess.plain)


class Conversation:
    """The messages to one client, and what the server has learned from the answers so far.

    Args:
        view: The view of the hostile server.
        plain: True if the client trains in plain coordinates.
    """

    def __init__(self, view: HostileServerView, plain: bool) -> None:
        assert view.model is not None
        self.view, self.messages, self.refused, self.bounded = view, 0, 0, False
        sums = view.public.settings.privacy.secure_aggregation
        self.talk = SingleOut(view, silence=False, outweigh=True).ask if sums else view.ask
        shape = tuple(view.public.images.shape[1:])
        self.known: Sensitivity = sensitivity(view.model, (shape[0], shape[1], shape[2]))
        images = view.public.images[:KNOWN]
        kinds = [images]
        if not plain and view.public.cipher.steps:
            own = KeyHolder(cipher=view.public.cipher, secret=bytes(32), scope="client")
            kinds = [own.encrypt(images, f"guess {key}", "train") for key in range(KEYS)]
        self.kinds = [_blocks(kind, view.public.patch_size) for kind in kinds]
        self.draw = torch.Generator().manual_seed(0)

    def images(self, count: int) -> list[Tensor]:
        """Returns the patches of a number of images, (N, D) each.

        Raises:
            RefusedError: If the client refuses a message.
        """
        absent = self._absent_class()
        kernel = self._kernel()
        mean, factor = read(self._answer(absent, kernel, slope=0.0, level=0.0), self.known)
        found = [mean] if self.bounded else []
        for _ in range(count if factor else 0):
            with contextlib.suppress(RefusedError):
                found.append(self._image(absent, mean))
        return found

    def _absent_class(self) -> int:
        """Returns the class whose bias falls the most if nothing else is trained."""
        delta = self._ask(self.view.start, trained=(HEAD_BIAS,))
        return int(delta[HEAD_BIAS].argmin())

    def _image(self, absent: int, mean: Tensor) -> Tensor:
        """Returns the patches of the image with the largest projection along a random kernel."""
        kernel = self._kernel()
        variances = [self.known.projection(kind, kernel).var() for kind in self.kinds]
        spread = float(torch.stack(variances).mean().sqrt())
        level = float(self.known.projection(mean, kernel)) + EXPECTED * spread
        patches = mean
        for slope in SLOPES:
            patches = self._let_through(absent, kernel, slope=slope / spread, level=level)
            level = float(self.known.projection(patches, kernel))
        return patches

    def _let_through(self, absent: int, kernel: Tensor, *, slope: float, level: float) -> Tensor:
        """Returns the patches that one model lets through, at a suitable level of the gate.

        If so much comes through that the optimiser takes its longest steps, the update is not
        proportional to the gradient; the level is then raised. If nothing comes through, the level
        is lowered.
        """
        settings = self.view.public.settings.training
        longest = LINEAR * self.view.public.rates[0] * settings.patch_embed_rate
        patches = torch.zeros_like(self.kinds[0][0])
        for _ in range(TRIES):
            delta = self._answer(absent, kernel, slope=slope, level=level)
            patches, factor = read(delta, self.known)
            open_too_wide = float(delta[WEIGHT].abs().max()) > longest
            if factor and not open_too_wide:
                break
            level += DEPTH / 2 / slope if open_too_wide else -DEPTH / 2 / slope
        return patches

    def _answer(self, absent: int, kernel: Tensor, *, slope: float, level: float) -> State:
        """Sends a crafted model of which only the patch embedding is trained."""
        tensors = crafted(
            self.view.start, self.known, absent=absent, kernel=kernel, slope=slope, level=level
        )
        return self._ask(tensors, trained=NAMES[:2])

    def _ask(self, tensors: State, trained: Sequence[str]) -> State:
        frozen = tuple(name for name in tensors if name not in trained)
        order = Order(tensors=tensors, round=1, frozen=frozen, rate=self.view.public.rates[0])
        answer = "" if self.bounded else self._send(order)
        if isinstance(answer, str):
            self.bounded = True
            answer = self._send(self.view.accepted(order))
        if isinstance(answer, str):
            raise RefusedError(answer)
        return answer

    def _send(self, order: Order) -> State | str:
        self.view.clock.check()
        answer = self.talk(order)
        self.messages += 1
        self.refused += isinstance(answer, str)
        return answer

    def _kernel(self) -> Tensor:
        """Draws a kernel u of length 1, (D,)."""
        kernel = torch.randn(self.kinds[0].shape[-1], generator=self.draw, dtype=torch.float64)
        return kernel.div_(kernel.norm())


def _blocks(images: Tensor, patch_size: int) -> Tensor:
    """Returns the patches of images as the model reads them, float64 (n, N, D)."""
    return normalize(to_blocks(images, patch_size)).double()


def _errors(own: Tensor, patches: Tensor) -> Tensor:
    """Returns the relative error of patches (N, D) as a guess of each image, (n,)."""
    errors: Tensor = (patches - own).flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1)
    return errors
