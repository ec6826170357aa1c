"""Differential privacy of clients: each update is bounded, and noise is added to their mean.

With clipping norm C and K clients, no client can change the mean of a round by more than C/K. Noise
that is larger than C/K hides whether a client took part:

    client   Δₖ ← Δₖ · min(1, C / ‖Δₖ‖)                   C clipping norm, for all tensors together
    server   Δ = 1/K · Σ Δₖ + N(0, (z·C/K)²)              z noise multiplier, for every scalar

K is the number of clients that were asked to train, which is known before the round; an absent
client counts as a zero update. All weights are equal, because the numbers of samples are private
data, too. The method is the Gaussian mechanism with sensitivity C/K and noise multiplier z. The
guarantee compares two inputs: one has the update of a client, and the other has a zero update of
the same client (zero-out neighbours, as in arXiv 2103.00039). The module
`flower.strategies.accounting` computes the privacy loss ε of all rounds together. A strategy gets
only the noisy mean, so everything that it computes from the mean is equally private. The strategy
also gets the numbers of samples and steps and the loss, which are not private.

The server adds the noise. So clients must trust the server, which sees the mean before noise is
added and, without secure aggregation, every update. The numbers of samples, the losses, the
measured accuracies and the list of participants are not private. The arithmetic is not exact: the
noise is drawn in double precision, then rounded to single precision together with the mean. A
secure sum rounds its numbers, which changes the sum by at most √S·R/2³¹ for S scalars in the range
±R; this change is not added to C/K. No proof excludes attacks on the last bits of floating-point
noise (Mironov, CCS 2012).

Source: McMahan et al., "Learning differentially private recurrent language models", arXiv
1710.06963, algorithm 1 with a fixed denominator. In contrast to the paper, the list of participants
is public.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.rng import derive_seed
from fl_vitlora.state import State, clip_norm, count, mean
from fl_vitlora.strategy import SEVERAL, Update

KEY_BYTES = 32
FROM_SEED = "seed of the run (config.yaml); anyone who has the seed can remove the noise"
FROM_SYSTEM = "randomness of the server's system; nobody can draw it again"

NoiseKey = Callable[[int], bytes]  # from the number of a round to the key of its noise


def secret_key(server_round: int) -> bytes:
    """Draws the key of a round's noise from the system's randomness; no run can draw it again."""
    del server_round
    return secrets.token_bytes(KEY_BYTES)


def repeatable_key(seed: int) -> NoiseKey:
    """Derives the keys of a run's noise from its seed, so that a simulation can be repeated.

    Anyone who knows the seed can remove the noise.

    Args:
        seed: The run's seed.

    Returns:
        A function from the number of a round to the key of its noise, 32 bytes.
    """
    return lambda server_round: derive_seed(seed, "noise", server_round).to_bytes(KEY_BYTES, "big")


def bounded(delta: State, report: State, most: float) -> tuple[State, State, bool]:
    """Scales delta and report together to a norm of at most C; a client calls this function.

    Args:
        delta: The change of the tensors by training.
        report: The additional tensors that clients of some strategies send; the mapping may be
            empty.
        most: The clipping norm C.

    Returns:
        Delta and report, scaled by the same factor; and True if their common norm was at most C
        before the scaling.
    """
    both = {f"delta {name}": tensor for name, tensor in delta.items()}
    both |= {f"report {name}": tensor for name, tensor in report.items()}
    scaled, within = clip_norm(both, most)
    return (
        {name: scaled[f"delta {name}"] for name in delta},
        {name: scaled[f"report {name}"] for name in report},
        within,
    )


def mean_update(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """Averages the updates of several clients to a single update, which represents all of them.

    Args:
        updates: The updates, at least one; all have the same tensors.
        weights: The weight of each update: its number of samples, or equal weights.

    Returns:
        The mean update; its field `client` has the value `SEVERAL`.

    Example:
        >>> updates = [
        ...     Update(client=k, samples=3, loss=k, delta={"w": torch.tensor([4.0 * k])})
        ...     for k in (0, 1)
        ... ]
        >>> one = mean_update(updates, [3, 1])
        >>> one.delta, one.loss, one.samples, one.members
        ({'w': tensor([1.])}, 0.25, 6, 2)
    """
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    return Update(
        client=SEVERAL,
        samples=sum(update.samples for update in updates),
        loss=math.fsum(p * update.loss for p, update in zip(shares, updates, strict=True)),
        delta=mean([update.delta for update in updates], weights),
        steps=round(math.fsum(p * u.steps for p, u in zip(shares, updates, strict=True))),
        report=mean([update.report for update in updates], weights),
        members=sum(update.members for update in updates),
        population=updates[0].population,
    )


def released(
    update: Update, *, cohort: int, clipping_norm: float, noise_multiplier: float, key: bytes
) -> Update:
    """Adds normal noise to a mean of bounded updates Δₖ: 1/K · Σ Δₖ + N(0, (z·C/K)²).

    Args:
        update: The mean of the bounded updates with equal weights, over the clients that answered.
        cohort: The number K of clients that were asked to train in the round, with those that
            did not answer.
        clipping_norm: The clipping norm C.
        noise_multiplier: The noise multiplier z.
        key: The key of the noise, 32 bytes; every round needs another key.

    Returns:
        The update with noise on every scalar of delta and report. The loss gets no noise.
    """
    stream, present = KeyStream(key), update.members / cohort
    deviation = noise_multiplier * clipping_norm / cohort

    def noisy(state: Mapping[str, Tensor]) -> State:
        noise = torch.from_numpy(stream.normals(count(state))) * deviation
        parts = torch.split(noise, [tensor.numel() for tensor in state.values()])
        return {
            name: (tensor.to(torch.float64) * present + part.reshape(tensor.shape)).to(tensor.dtype)
            for (name, tensor), part in zip(state.items(), parts, strict=True)
        }

    return replace(update, delta=noisy(update.delta), report=noisy(update.report))
