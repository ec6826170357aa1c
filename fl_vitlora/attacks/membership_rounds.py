"""Detects on which images a client has trained, from the single updates of all rounds.

The update of a client that trained on an image differs from those of other clients. Each candidate
image x has an owner, the client that may have trained on it. The owner's update Δ of a round is
compared with the updates of all other clients by two measures:

* the fall of the loss of x along the update. This is the cosine of Δ and -∇ℓ(x), times the length
  of the gradient, which is the same for all clients. The derivative is computed as a
  difference over `STEP` of the update;
* the logit of x after the whole update, log(q / (1 - q)), where q is the probability of its class.
  The distribution of logits is closer to a Gaussian than that of losses.

A Gaussian is fitted to the measure of the other clients. The tail p of the Gaussian beyond the
owner's value is a one-tailed likelihood ratio. The score of a candidate is the sum of -log p over
both measures and all rounds. Two things differ from FedMIA. First, FedMIA adds 1 - p, which
is equal for all members that are almost certain. Second, a variance is here the mean of the
candidate's variance and the average variance of all candidates, because a variance from a few
clients is inaccurate.

Source: Zhu et al., FedMIA, arXiv 2402.06289; Carlini et al., S&P 2022 (logits).

Letters in shapes: M candidates, K clients of a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.membership_figures import FIGURES, lacks_candidates, membership_figures
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import InformedServerView
from fl_vitlora.federation.observer import Sight
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import normalize
from fl_vitlora.state import State, l2_norm

STEP = 0.1  # share of an update over which the derivative of the loss is a difference
FEWEST_CLIENTS = 4  # fewest clients of a round; the Gaussian is fitted to all but one of them
ROUNDS = 6  # most rounds that are used, at equal distances
BATCH = 64  # images whose losses are computed together
LEAST_LOSS, LEAST_SPREAD = 1e-9, 1e-9  # smallest loss of an image, smallest standard deviation


@dataclass(frozen=True, kw_only=True)
class MembershipRounds(Attack[InformedServerView, Tensor]):
    """The attack. A guess is a score of each candidate, (M,); members should have larger scores."""

    adversaries = (InformedServerView,)
    goal = "On which images a client has trained, from how its updates differ from all others."
    figures = FIGURES

    def lacks(self, view: InformedServerView) -> str:
        """Returns why the server cannot compare updates of single clients; empty if it can."""
        if reason := view.lacks_single_updates() or lacks_losses(view):
            return reason
        if max(len(sight.updates) for sight in view.rounds) < FEWEST_CLIENTS:
            return f"it needs the updates of {FEWEST_CLIENTS} clients in a round"
        return ""

    def guess(self, view: InformedServerView) -> Tensor:
        """Returns the sum of -log p of each candidate over measures and rounds, float64 (M,)."""
        scores = torch.zeros(len(view.labels), dtype=torch.float64)
        usable = [place for place, s in enumerate(view.rounds) if len(s.updates) >= FEWEST_CLIENTS]
        for place in usable[:: -(-len(usable) // ROUNDS)]:
            sight = view.rounds[place]
            clients = torch.tensor([update.client for update in sight.updates])
            own = clients.unsqueeze(1) == view.owners  # (K, M)
            for measure in measures(view, sight):
                scores += evidence(measure, own)
        return scores

    def score(self, guess: Tensor, truth: Truth) -> Sequence[Figure]:
        """Returns the area under the curve, and the rates at small false positive rates."""
        return membership_figures(guess, truth.members())


def lacks_losses(view: InformedServerView) -> str:
    """Returns why a server with updates cannot compute losses of candidates; empty if it can."""
    if reason := lacks_candidates(view.labels):
        return reason
    if view.model is None:
        return "without the key the server cannot compute the outputs of the clients' models"
    shapes = {name: p.shape for name, p in methods.trainable(view.model).items()}
    for sight in view.rounds:
        for state in (sight.model, *(update.delta for update in sight.updates)):
            if any(shapes.get(name) != tensor.shape for name, tensor in state.items()):
                return "clients have matrices of different ranks"
    return ""


def measures(view: InformedServerView, sight: Sight) -> tuple[Tensor, Tensor]:
    """Measures how much each update of a round improves the model on each candidate.

    Returns:
        The slope of the fall of the loss along the update, and the logit after the update, (K, M)
        each.
    """
    assert view.model is not None
    losses = losses_by(view.model, view.images, view.labels, view.clock.check)
    before = losses(sight.model)
    falls, after = [], []
    for update in sight.updates:
        length = STEP * max(l2_norm(update.delta), LEAST_SPREAD)
        falls.append((before - losses(moved(sight.model, update.delta, STEP))) / length)
        after.append(logits_of(losses(moved(sight.model, update.delta, 1.0))))
    return torch.stack(falls), torch.stack(after)


def logits_of(losses: Tensor) -> Tensor:
    """Returns log(q / (1 - q)) for losses -log q; smaller losses are set to `LEAST_LOSS`.

    Example:
        >>> logits_of(torch.tensor([0.25, 0.75]).log().neg())
        tensor([-1.0986,  1.0986])
    """
    return -losses.clamp(min=LEAST_LOSS).expm1().log()


def moved(model: Mapping[str, Tensor], delta: Mapping[str, Tensor], share: float) -> State:
    """Returns a model after a share of an update; tensors without an update stay."""
    return {name: t + share * delta[name] if name in delta else t for name, t in model.items()}


def losses_by(
    model: nn.Module, images: Tensor, labels: Tensor, check: Callable[[], None]
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Returns a function from the trained tensors of a model to the losses of the images, (M,).

    Args:
        model: A prepared model, which is not changed.
        images: The images as the model reads them, uint8 (M, C, H, W).
        labels: The labels of the images, (M,).
        check: A function that is called before each batch.
    """
    places = {id(parameter): name for name, parameter in model.named_parameters()}
    own = {name: places[id(p)] for name, p in methods.trainable(model).items()}
    batches = list(
        zip(torch.split(normalize(images), BATCH), torch.split(labels, BATCH), strict=True)
    )

    @torch.no_grad()
    def losses(state: Mapping[str, Tensor]) -> Tensor:
        tensors = {own[name]: tensor for name, tensor in state.items()}
        training = model.training
        model.eval()
        found = []
        for pixels, classes in batches:
            check()
            logits = functional_call(model, tensors, (pixels,))
            found.append(F.cross_entropy(logits.double(), classes, reduction="none"))
        model.train(training)
        return torch.cat(found)

    return losses


def evidence(measure: Tensor, own: Tensor) -> Tensor:
    """Returns -log p of each candidate, where p is the tail beyond its owner's measure.

    Args:
        measure: A measure of each client and candidate, (K, M). Members should have larger values.
        own: True where the client is the owner of the candidate, bool (K, M).

    Returns:
        The evidence, float64 (M,). The evidence is 0 if the owner did not take part.

    Example:
        >>> measure = torch.tensor([[3.0], [1.0], [-1.0]])
        >>> evidence(measure, torch.tensor([[True], [False], [False]]))  # 3 standard deviations
        tensor([6.6077], dtype=torch.float64)
    """
    values, others = measure.double(), ~own
    count = others.sum(dim=0)
    mean = (values * others).sum(dim=0) / count
    variance = ((values - mean) ** 2 * others).sum(dim=0) / count
    spread = ((variance + variance.mean()) / 2).sqrt()
    deviation = ((values * own).sum(dim=0) - mean) / spread.clamp(min=LEAST_SPREAD)
    found: Tensor = torch.where(own.any(dim=0), -torch.special.log_ndtr(-deviation), 0.0)
    return found
