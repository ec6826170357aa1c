"""Differential privacy of clients: bounded updates, and noise on their mean.

No client can move the mean of a round by more than C/K, and noise larger than that hides whether it
took part:

    client   Δₖ ← Δₖ · min(1, C / ‖Δₖ‖)                   C clipping norm, over all that it sends
    server   Δ = 1/K · Σ Δₖ + N(0, (z·C/K)²)              z noise multiplier, in every scalar

K is how many were asked, known before the round: who is absent counts as a zero. Weights are equal,
for numbers of samples would be data too. It is the Gaussian mechanism of sensitivity C/K and noise
multiplier z, for each client against itself sending nothing (zero-out neighbours, as in arXiv
2103.00039); `flower.strategies.accounting` computes ε over the rounds. A strategy is given the
noisy mean alone, so that whatever it makes of it is as private (the numbers of samples and steps,
and the loss, which stand beside it, are not).

The server adds the noise: it is trusted with the mean, and without a secure sum with every update.
Not private are the numbers of samples, the losses, the measured accuracies, and who took part.
Arithmetic is not exact: the noise is drawn in double precision, then rounded to single with the
mean, and the rounding of a secure sum, at most √S·R/2³¹ for S scalars, is not added to C/K. No
proof rules out attacks on the last bits of floating-point noise (Mironov, CCS 2012).

Source: McMahan et al., "Learning differentially private recurrent language models", arXiv
1710.06963, algorithm 1 with a fixed denominator; here the participants are no secret.
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
FROM_SEED = "seed of the run (config.yaml); whoever has it can take the noise off"
FROM_SYSTEM = "randomness of the server's system; nobody can draw it again"

NoiseKey = Callable[[int], bytes]  # of a round


def secret_key(server_round: int) -> bytes:
    """Draws the key of a round's noise from the system's randomness, as a deployment must."""
    del server_round
    return secrets.token_bytes(KEY_BYTES)


def repeatable_key(seed: int) -> NoiseKey:
    """Derives the keys of a run's noise from its seed, so that a simulation repeats.

    Whoever knows the seed can take the noise away again.

    Args:
        seed: The run's seed.

    Returns:
        What gives the key of a round, 32 bytes.
    """
    return lambda server_round: derive_seed(seed, "noise", server_round).to_bytes(KEY_BYTES, "big")


def bounded(delta: State, report: State, most: float) -> tuple[State, State, bool]:
    """At a client: scales delta and report together to a norm of at most C.

    Args:
        delta: What training changed.
        report: What the strategy sends beside it, or nothing.
        most: C.

    Returns:
        Both, scaled by the same factor, and whether they were within the norm.
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
    """Averages updates to the one that stands for all of them.

    Args:
        updates: At least one, with the same tensors.
        weights: One for each: samples, or all the same.

    Returns:
        An update of no client in particular.

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
    """Makes a mean of bounded updates private: 1/K · Σ Δₖ + N(0, (z·C/K)²).

    Args:
        update: Their mean with equal weights, over those that answered.
        cohort: K, how many were asked.
        clipping_norm: C.
        noise_multiplier: z.
        key: Of the noise, 32 bytes; another one in every round.

    Returns:
        The update with noise in all of delta and report. Its loss stays as it is.
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
