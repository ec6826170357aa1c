"""Makes the view of a hostile server, which can send messages to a client of a finished run.

The real code of a client answers the messages, with the client's own encrypted images and with the
settings of the run. The client has no memory of the run, like a client that joins late.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from fl_vitlora.adaptation import policies
from fl_vitlora.attacks.views import HostileServerView, Order, Public, SumClient
from fl_vitlora.communication.fixed_point import Words
from fl_vitlora.config import Config
from fl_vitlora.encryption.identities import open_identities, private_path
from fl_vitlora.experiment.attacked_run import AttackedRun
from fl_vitlora.experiment.client_settings import client_settings
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.client.direct import DirectClient, answer
from fl_vitlora.flower.client.workspace import ClientSettings
from fl_vitlora.flower.wire.round_message import RoundMessage
from fl_vitlora.models.reading import put_reader
from fl_vitlora.privacy.agreement import Signatures
from fl_vitlora.privacy.secure_sum import Roster
from fl_vitlora.reporting.run_folder import SHARDS
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy
from fl_vitlora.strategy.extras import call
from fl_vitlora.training.local import scheduled_rate
from fl_vitlora.training.movement import reach
from fl_vitlora.training.optimizers import rate_factor


def hostile_server(
    run: AttackedRun, public: Public, client: int, *, has_reader: bool
) -> HostileServerView:
    """Returns the view of a hostile server that attacks one client of a finished run.

    Args:
        run: The finished run.
        public: The data about the run that every adversary has.
        client: The number of the attacked client.
        has_reader: True if the server has the patch embedding and the position embedding.
    """
    model: nn.Module = copy.deepcopy(run.backbone.model)
    put_reader(model, run.start)
    start = start_of(run, model)
    return HostileServerView(
        public=public,
        reader=run.start if has_reader else None,
        client=client,
        model=model if has_reader else None,
        start=start,
        ask=asking(settings_of(run), client),
        accepted=bounding(run.config, run.strategy, start, methods.rates(model)),
        sum_clients=lambda: sum_clients(settings_of(run)),
    )


def start_of(run: AttackedRun, model: nn.Module) -> State:
    """Returns the exchanged tensors before the first round, of a model with the server's reader."""
    return policies.exchanged(run.config, methods.export_state(model), run.strategy.personal)


def first_update(run: AttackedRun, public: Public, client: int) -> State:
    """Returns the update of a client in round 1, without the mask of a secure sum.

    Raises:
        RuntimeError: If the client cannot train.
    """
    model: nn.Module = copy.deepcopy(run.backbone.model)
    put_reader(model, run.start)
    masked = settings_of(run)
    privacy = replace(masked.config.privacy, secure_aggregation=False)
    settings = replace(masked, config=replace(masked.config, privacy=privacy), identities=None)
    order = Order(tensors=start_of(run, model), round=1, rate=public.rates[0])
    answer = asking(settings, client)(order)
    if isinstance(answer, str):  # the reason
        raise RuntimeError(f"client {client} refused an honest message: {answer}")  # noqa: TRY004
    return answer


class DirectSumClient(DirectClient):
    """A client of secure sums, for `HostileServerView.sum_clients`."""

    def train(self, order: Order, roster: Roster, signatures: Signatures) -> Words | str:
        """Sends an `Order` with a signed roster, and returns the masked words of the update."""
        return self.masked(_instruction(order), roster, signatures)


def sum_clients(settings: ClientSettings) -> Mapping[int, SumClient]:
    """Returns the clients of a new run by their numbers; {} if the run has no secure sums."""
    config = settings.config
    some = config.clients if config.privacy.secure_aggregation else 0
    return {client: DirectSumClient(settings, client) for client in range(some)}


def _instruction(order: Order) -> RoundMessage:
    return RoundMessage(
        tensors=order.tensors, round=order.round, frozen=order.frozen, rate=order.rate
    )


def settings_of(run: AttackedRun) -> ClientSettings:
    """Returns the settings that the clients of a finished simulation had."""
    pins = run.config.privacy.client_keys
    return client_settings(
        run.config,
        run.folder / SHARDS,
        run.class_names,
        "cpu",
        run.strategy,
        with_key=policies.clients_need_key(run.config),
        storage=run.storage,
        identities=open_identities(Path(pins), private_path(Path(pins))) if pins else None,
    )


def asking(settings: ClientSettings, client: int) -> Callable[[Order], State | str]:
    """Returns the function `HostileServerView.ask`, which sends an `Order` to a client."""

    def ask(order: Order) -> State | str:
        return answer(settings, client, _instruction(order))

    return ask


def bounding(
    config: Config, strategy: Strategy, start: State, rates: Mapping[str, float]
) -> Callable[[Order], Order]:
    """Returns the function `HostileServerView.accepted`.

    An `Order` is the message that the hostile server sends. The returned function changes this
    message in such a way that the guard of a client accepts it. The changed message is for the last
    round, in which the guard allows the largest distance of tensors from their start. Each
    entry becomes the nearest value that the guard allows. The frozen tensors and the learning rate
    become those of an honest server. If clients have no guard, the function
    returns the message without any change.

    Args:
        config: The configuration of the run.
        strategy: The strategy of the run.
        start: The exchanged tensors before the first round.
        rates: The factors for the learning rates of tensors that the fine-tuning method sets, by
            name.
    """
    steps, factor, last = config.privacy.guard_steps, strategy.step_bound(), config.rounds
    if steps is None or factor is None:
        return lambda order: order
    training = config.training
    far = reach(training, last, last - 1, steps, factor)
    limits = {name: far * rate_factor(name, training, rates) for name in start}

    def accepted(order: Order) -> Order:
        tensors = {
            name: tensor.clamp(start[name] - limits[name], start[name] + limits[name])
            for name, tensor in order.tensors.items()
        }
        rate = scheduled_rate(training, last, last)
        frozen = call(strategy.plan, last).frozen
        return Order(tensors=tensors, round=last, frozen=frozen, rate=rate)

    return accepted
