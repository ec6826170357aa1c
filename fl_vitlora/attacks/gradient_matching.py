"""Reconstructs the images of a client from its update, as images with the observed gradient.

The server knows the model that it sent, and the method, the optimiser and the rate of the clients.
The gradient and the labels follow from the update. The attack looks for images
that give the same gradient, in three ways: least squares within the span of the patches
(`inversion.in_span`), and two published ways (`inversion.first_order`). The attack chooses the
guess whose gradient is nearest to the observed gradient. The images are ciphertext, or plain images
if updates are sent in plain coordinates (``finetuning.patch_embedding=aligned``).

A batch of many images has more unknowns than the gradient determines. If all updates have more
images than the attack may use together, only one update is attacked. The attack treats this update
as if the client had a single image, of the client's most common class, and the search is short.

Under secure aggregation the sum of a round is attacked as the update of one client that has the
images of all clients. If every client takes one step of plain descent on all its images, the sum is
the gradient of these images.

Letters in shapes: B images, C channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

import torch
from torch import Tensor, nn

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.inversion.comparison import likeness, of_same_classes
from fl_vitlora.attacks.inversion.distances import residuals
from fl_vitlora.attacks.inversion.first_order import Variant, match
from fl_vitlora.attacks.inversion.in_span import POINTS, SpanProblem, reconstruct
from fl_vitlora.attacks.inversion.least_squares import Steps
from fl_vitlora.attacks.inversion.observed import Observed, most_telling
from fl_vitlora.attacks.inversion.simulated import simulated
from fl_vitlora.attacks.pictures import Pictures, beside_nearest
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Owned, Truth
from fl_vitlora.attacks.views import Public, ServerView
from fl_vitlora.finetuning import methods

LAST_STEPS = 60  # steps of least squares with all unknowns
SHORT = 20  # steps of the published ways in a short search
DRAWS = 10  # choices of other images with which a guess is compared
PARAMETERS, PATCHES = 5_000_000, 64  # size of the largest model that is attacked
SPAN = "least squares"
PUBLISHED: tuple[Variant, ...] = ("inverting gradients", "GradViT")
WAYS = (SPAN, *PUBLISHED)
SIMILARITY, ERROR = "structural similarity (SSIM)", "mean error of a pixel (of 255)"
NOISE, TRIED = "SSIM of noise", "images tried"


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """The guessed images of one client.

    Attributes:
        client: The number of the client.
        classes: The guessed labels, int64 (B,).
        images: For each way of search, the images with pixels in [0, 255], (B, C, H, W).
        chosen: The way whose images have the gradient that is nearest to the observed one.
    """

    client: int
    classes: Tensor
    images: Mapping[str, Tensor] = field(repr=False)
    chosen: str


@dataclass(frozen=True)
class Reconstructions:
    """A guess: the images of some clients.

    Attributes:
        found: One entry for each attacked client.
        plain: True if the updates are sent in plain coordinates.
    """

    found: Sequence[Reconstruction]
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack[ServerView, Reconstructions]):
    """The attack on the update of each client that reveals most about its images.

    Attributes:
        images: The largest number of images that are reconstructed, for all clients together.
        steps: The largest number of steps of least squares for all clients together. A step counts
            once for every 64 unknowns, and 60 moves of patches count as much as a step. When no
            step is left, a search ends at its present point, and the remaining clients are left
            out.
        published_steps: The number of steps of each of the two published ways, for each client.
    """

    adversaries = (ServerView,)
    goal = "The images of a client, from the gradient that follows from its update."
    figures = (SIMILARITY, ERROR, *(f"SSIM by {way}" for way in WAYS), NOISE, TRIED)

    steps: int = 1000
    published_steps: int = 200

    def lacks(self, view: ServerView) -> str:
        """Returns why the server cannot simulate the gradient of clients' patches."""
        if reason := view.lacks_updates():
            return reason
        changes = [change for _, change in view.patch_embedding_changes()]
        if not changes:
            return "no client sends a patch embedding"
        if not any(change.any() for change in changes):
            return "the patch embedding has no gradient while the head is zero; record more rounds"
        if changes[0].ndim == 3:
            return "every patch has its own kernel"
        return _lacks_model(view)

    def guess(self, view: ServerView) -> Reconstructions:
        """Returns the images of as many clients as `images` and `steps` allow."""
        assert view.model is not None
        allowed, shape = Steps(self.steps, view.clock), view.public.images.shape[1:]
        found, tried = list[Reconstruction](), 0
        for observed in most_telling(view.rounds, view.public, methods.rates(view.model)):
            problem = problem_of(view.model, observed, view.public, self.images)
            tried += len(problem.classes)
            large = len(observed.classes) > self.images
            if found and (large or tried > self.images or allowed.over):
                break
            found.append(self._reconstructed(problem, observed.client, shape, allowed, short=large))
        plain = view.public.settings.finetuning.patch_embedding == "aligned"
        return Reconstructions(found, plain)

    def score(self, guess: Reconstructions, truth: Truth) -> Sequence[Figure]:
        """Returns how similar guesses are to the clients' images, compared with other images."""
        found = [Compared.of(one, truth.owned_by(one.client), guess.plain) for one in guess.found]
        similarity, error = (mean(one.found[n] for one in found) for n in (0, 1))
        usual, usual_error = (mean(one.usual[n] for one in found) for n in (0, 1))
        return [
            Figure(
                name=SIMILARITY,
                value=100 * similarity,
                floor=100 * usual,
                ceiling=100,
            ),
            Figure(
                name=ERROR,
                value=error,
                unit="",
                floor=usual_error,
                ceiling=0,
            ),
            *(
                Figure(name=f"SSIM by {way}", value=100 * mean(one.ways[way] for one in found))
                for way in WAYS
            ),
            Figure(name=NOISE, value=100 * mean(one.noise for one in found)),
            Figure(name=TRIED, value=sum(len(one.classes) for one in guess.found), unit=""),
        ]

    def pictures(self, guess: Reconstructions, truth: Truth) -> Pictures:
        """Returns the images of the first client, each beside the image most similar to it."""
        first = guess.found[0]
        owned = truth.owned_by(first.client)
        return beside_nearest(owned, first.images[first.chosen], plain=guess.plain)

    def _reconstructed(
        self,
        problem: SpanProblem,
        client: int,
        shape: torch.Size,
        allowed: Steps,
        *,
        short: bool,
    ) -> Reconstruction:
        size = (int(shape[0]), int(shape[1]), int(shape[2]))
        published = min(SHORT, self.published_steps) if short else self.published_steps
        found = dict[str, Tensor]()
        for way in PUBLISHED:
            found[way] = match(problem, size, way, published, allowed.clock)
        last, points = (0, 1) if short else (LAST_STEPS, POINTS)
        found[SPAN], _ = reconstruct(problem, last, points, allowed)
        costs = {way: mismatch(problem, images) for way, images in found.items()}
        return Reconstruction(
            client=client,
            classes=problem.classes,
            images={way: (images + 1) * 127.5 for way, images in found.items()},
            chosen=min(costs, key=lambda way: costs[way]),
        )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The similarity of guesses to a client's images, as pairs of similarity and mean error.

    Attributes:
        found: The pair of the chosen guess.
        usual: The pair of other images of the same classes under the same key, as a mean over
            `DRAWS` choices.
        ways: The similarity of the guess of each way of search.
        noise: The similarity of random pixels.
    """

    found: tuple[float, float]
    usual: tuple[float, float]
    ways: Mapping[str, float]
    noise: float

    @classmethod
    def of(cls, guess: Reconstruction, owned: Owned, plain: bool) -> Compared:
        """Compares the guessed images of a client with its true images."""
        own = owned.plain if plain else owned.ciphertext
        others = owned.others if plain else owned.others_ciphertext
        usual = [
            likeness(of_same_classes(guess.classes, others, owned.others_labels, number), own)
            for number in range(DRAWS)
        ]
        chosen = guess.images[guess.chosen]
        noise = torch.rand(chosen.shape, generator=torch.Generator().manual_seed(0)) * 255
        return cls(
            found=likeness(chosen, own),
            usual=(mean(one[0] for one in usual), mean(one[1] for one in usual)),
            ways={way: likeness(images, own)[0] for way, images in guess.images.items()},
            noise=likeness(noise, own)[0],
        )


def problem_of(model: nn.Module, observed: Observed, public: Public, most: int) -> SpanProblem:
    """Returns the problem of least squares for an update.

    Args:
        model: The model of the server.
        observed: The gradient that follows from the update.
        public: The settings of the run.
        most: The largest number of images. If the client has more images, its update is treated as
            if it had a single image, of its most common class.
    """
    own = simulated(model, observed.model, public.settings.training.label_smoothing)
    height, width = public.images.shape[-2:]
    classes = observed.classes
    if len(classes) > most:
        classes = classes.mode().values.reshape(1)
    return SpanProblem(
        model=own,
        target={name: g for name, g in observed.gradient.items() if name in own.names.values()},
        exact=observed.exact and len(classes) == len(observed.classes),
        classes=classes,
        size=(int(height), int(width)),
        patch_size=public.patch_size,
    )


def mismatch(problem: SpanProblem, images: Tensor) -> float:
    """Returns the squared residuals of the gradient of images, without any prior."""
    gradient = problem.model.gradient(images, problem.classes)
    return float(residuals(gradient, problem.target, problem.exact).square().sum())


def _lacks_model(view: ServerView) -> str:
    """Returns why the server cannot compute the gradients of a client; empty if it can."""
    settings = view.public.settings
    turned = settings.finetuning.patch_embedding == "aligned" and settings.encryption.steps
    if turned and not settings.encryption.adapt:
        return "clients read other coordinates than those that they send (aligned, not adapted)"
    if view.model is None:
        return "the server has no complete model"
    height, width = view.public.images.shape[-2:]
    patches = (height // view.public.patch_size) * (width // view.public.patch_size)
    if patches > PATCHES or sum(p.numel() for p in view.model.parameters()) > PARAMETERS:
        return (
            f"the search takes hours for models of more than {PARAMETERS / 1e6:g} million "
            f"parameters or {PATCHES} patches"
        )
    return "" if _complete(view) else "clients have matrices of lower ranks than the server"


def _complete(view: ServerView) -> bool:
    """Returns True if all updates have tensors of the shapes that the server has."""
    return all(
        change.shape == sight.model[name].shape
        for sight in view.rounds
        for update in sight.updates
        for name, change in update.delta.items()
    )
