"""The transport: sends instructions to clients and receives their updates.

Flower names nodes by random ids. In this project the number of a client is the number of its shard.
The server asks each node for this number once (`greeting`). Replies are sorted by client, so that
the rounding of sums does not depend on which client was faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.app import RecordDict

from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.federation.client_records import ClientRecords, from_registries
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.federation.exchange import Exchange
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LOCAL_EPOCHS, Instruction
from fl_vitlora.flower.server import greeting
from fl_vitlora.flower.server.asking import Answers, Asker, Question
from fl_vitlora.flower.server.client_evaluations import ask_for_evaluations
from fl_vitlora.flower.server.posting import Post
from fl_vitlora.flower.server.secure_sums import (
    SecureAggregator,
    Summed,
    ask_for_seeds,
    ask_to_sign,
)
from fl_vitlora.flower.server.sending import ServerEnd
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import MessageLayouts
from fl_vitlora.flower.wire.reported_counts import Counts, limited
from fl_vitlora.flower.wire.updates import read_update
from fl_vitlora.state import State
from fl_vitlora.storage.trees import Tree
from fl_vitlora.strategy import ClientPlan, Update


class Transport:
    """Carries instructions and updates over Flower's grid.

    Args:
        post: The post, which sends and counts the messages.
        initial: The exchanged tensors before the first round.
        config: The configuration of the experiment. If `config` is None, the transport uses the
            default settings and does not check how many optimiser steps a client took.
        class_names: The names of the classes that every client must have, in the order of the run;
            None if classes are not compared.
        sums: The secure aggregator; None without secure aggregation.
        repeats_errors: True if the server asks a client once more after the client's app raised an
            error.
    """

    def __init__(
        self,
        post: Post,
        initial: State,
        *,
        config: Config | None = None,
        class_names: Sequence[str] | None = None,
        sums: SecureAggregator | None = None,
        repeats_errors: bool = True,
    ) -> None:
        self._config = config or Config()
        self._training = None if config is None else config.training
        self._class_names = class_names
        self._sums = sums
        self._plan = ClientPlan()  # the plan of the last round
        self._measured: tuple[str, ...] = ()  # the tensors that clients measured in the last round
        self._records = ClientRecords(initial)
        self._asker = Asker(
            post=post,
            end=ServerEnd(initial, self._config, self._records),
            records=self._records,
            config=self._config,
            layout=Layout.of(initial),
            repeats_errors=repeats_errors,
        )

    def greet(self, clients: int) -> dict[int, int]:
        """Waits for the nodes, and asks each node for its client number; see `greeting.greet`.

        Args:
            clients: The number of nodes to wait for.

        Returns:
            The number of training images of each client, by client.
        """
        return greeting.greet(
            clients,
            post=self._asker.post,
            records=self._records,
            class_names=self._class_names,
            sums=self._sums,
        )

    def snapshot(self) -> Tree:
        """Returns the client records, the streams and the last instructions, for a checkpoint."""
        return {
            "clients": self._records.snapshot(),
            "streams": self._asker.end.snapshot(),
            "plan": dict(vars(self._plan)),
            "measured": list(self._measured),
        }

    def restore(self, tree: Tree) -> None:
        """Restores a snapshot of this version of the program, or of the previous version."""
        known = _current(tree)
        self._records.restore(known["clients"])
        self._asker.end.restore(known["streams"])
        self._plan = _plan_of(known["plan"])
        self._measured = tuple(known.get("measured", ()))  # missing in older checkpoints

    def exchange(self, server_round: int, instructions: Sequence[Instruction]) -> Exchange:
        """Sends the instructions of a round and waits for the updates; see `Asker.ask`.

        Args:
            server_round: The number of the round, from 1.
            instructions: One instruction for each participant.
        """
        asked = {one.client: one for one in sorted(instructions, key=lambda one: one.client)}
        self._plan, self._measured = instructions[0].plan, instructions[0].measured
        images = {client: self._records.images_of(client) for client in asked}
        clipped: int | None = None
        if self._sums is None:
            answers = self._asker.ask(
                Question(round=server_round, asked=asked, read=self._read_update)
            )
            read, reasons = answers.read, answers.reasons
            answered = {client: images[client] for client in read}
            weights = limited(answered, self._config.max_client_share)
            updates = tuple(replace(read[c], samples=weights[c]) for c in sorted(read))
        else:
            weights = limited(images, self._config.max_client_share)
            sent, summed = self._add_up(self._sums, server_round, asked, weights)
            others = {client: (reason,) for client, reason in summed.failures.items()}
            updates, clipped, reasons = summed.updates, summed.clipped, sent.reasons | others
        apart = answers.taken_apart if self._sums is None else sent.taken_apart
        _remember(self._records, server_round, asked, frozenset(reasons))
        failures = (Failure.of(server_round, c, *reasons[c]) for c in sorted(reasons))
        return Exchange(
            updates=updates,
            failures=tuple(failures),
            taken_apart=tuple(sorted(apart - reasons.keys())),
            clipped=clipped,
        )

    def _add_up(
        self,
        sums: SecureAggregator,
        server_round: int,
        asked: Mapping[int, Instruction],
        weights: Mapping[int, int],
    ) -> tuple[Answers[RecordDict], Summed]:
        """Asks for masked updates and adds these up; the server sees only the sum."""
        agreed = sums.agree(server_round, weights, lambda one: ask_to_sign(self._asker, one))
        if agreed.roster is None:
            nobody = Answers[RecordDict](read={}, reasons={}, taken_apart=frozenset())
            return nobody, Summed(failures=agreed.failures)
        answers = self._asker.ask(
            Question(
                round=server_round,
                asked={client: asked[client] for client in sorted(agreed.roster.clients)},
                read=lambda _, content, __: content,
                roster=agreed.roster,
                signatures=agreed.signatures,
            )
        )
        layout = self._asker.layout
        summed = sums.add_up(
            agreed.roster,
            answers.read,
            layout.without(layout.ending_with(self._plan.frozen)),
            lambda *those: ask_for_seeds(self._asker, *those),
            images=weights,
            expected={client: self._expected(one) for client, one in asked.items()},
        )
        return answers, replace(summed, failures={**summed.failures, **agreed.failures})

    def measure(
        self,
        server_round: int,
        model: GlobalModel,
        views: Sequence[str],
        most: int | None = None,
    ) -> list[Answer]:
        """Asks every client to evaluate a model on its own images; see `client_evaluations`.

        Args:
            server_round: The round after which the model is evaluated.
            model: The model as the server stores it.
            views: The names of the views of the images (`federation.evaluation`).
            most: The largest number of images that all clients together evaluate; None if they
                evaluate all their images.

        Returns:
            The answers, sorted by client.
        """
        return ask_for_evaluations(
            self._asker,
            server_round,
            model,
            views=views,
            most=most,
            plan=self._plan,
            measured=self._measured,
        )

    def _read_update(
        self, asked: Instruction, content: RecordDict, layouts: MessageLayouts
    ) -> Update:
        """Reads an update, and clips it to the clipping norm in the instruction or the settings."""
        update = read_update(
            content,
            layouts,
            asked,
            population=len(self._records.greeted_clients()),
            expected=self._expected(asked),
        )
        told = asked.config.get(messages.CLIPPING_NORM)
        norm = float(told) if isinstance(told, int | float) else self._config.privacy.clipping_norm
        return self._asker.end.bounded(update, norm)

    def _expected(self, asked: Instruction) -> Counts:
        """Returns the numbers of images and steps that a client's update must state.

        The number of steps depends on the local epochs, which a strategy may set.
        """
        training, epochs = self._training, asked.config.get(LOCAL_EPOCHS)
        if training is not None and isinstance(epochs, int):
            training = replace(training, epochs=epochs)
        return Counts.of(self._records.images_of(asked.client), training)


def _remember(
    records: ClientRecords,
    server_round: int,
    asked: Mapping[int, Instruction],
    failed: frozenset[int],
) -> None:
    """Notes for each client whether the server used its update."""
    for client, one in asked.items():
        if client in failed:
            records.missed(client)
        else:
            records.answered(client, server_round, one.model, one.plan)


def _current(tree: Tree) -> Tree:
    """Returns a snapshot in the format of this version of the program.

    Args:
        tree: A snapshot of this version, or of the previous version, which had two registries of
            clients.
    """
    if "holdings" not in tree:
        return tree
    end = tree["end"]
    clients = from_registries(tree["holdings"], end["followed"])
    return {"clients": clients, "streams": end["streams"], "plan": tree["plan"]}


def _plan_of(tree: Tree) -> ClientPlan:
    """Returns the plan of a snapshot, with tuples in place of the lists that a checkpoint holds."""
    plan = ClientPlan(**tree)
    return replace(plan, frozen=tuple(plan.frozen), restarted=tuple(plan.restarted))
