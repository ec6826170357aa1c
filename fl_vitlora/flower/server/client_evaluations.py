"""Evaluation by the clients: the server asks every client to evaluate a model on its own images."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import RecordDict

from fl_vitlora.data.views import VALIDATION
from fl_vitlora.federation.client_records import ClientRecords
from fl_vitlora.federation.evaluation import Answer, Reported, share_of
from fl_vitlora.federation.failures import Failure, first_reasons
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import SERVER_ROUND, ConfigValue, Instruction
from fl_vitlora.flower.server.asking import Asker, Question
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.reported_counts import read_measured
from fl_vitlora.strategy import ClientPlan


def ask_for_evaluations(
    asker: Asker,
    server_round: int,
    model: GlobalModel,
    *,
    views: Sequence[str],
    most: int | None,
    plan: ClientPlan,
    measured: tuple[str, ...] = (),
) -> list[Answer]:
    """Asks every client to evaluate a model on its own encrypted images.

    Args:
        asker: Sends the question, and notes in its records that the clients have the model.
        server_round: The round after which the model is evaluated.
        model: The model as the server stores it.
        views: The names of the views of the images (`federation.evaluation`).
        most: The largest number of images that all clients together evaluate; None for all images.
        plan: The plan of the last round, which says which tensors are frozen.
        measured: Endings of the names of tensors that clients do not train but measure.

    Returns:
        The answers, sorted by client.

    Raises:
        RuntimeError: If a client sends no usable answer. An accuracy over only some of the test
            images would not be comparable.
    """
    config: dict[str, ConfigValue] = {SERVER_ROUND: server_round, messages.VIEWS: list(views)}
    clients = asker.records.greeted_clients()
    if (share := share_of(most, len(clients))) is not None:
        config[messages.MOST] = share
    asked = {
        client: Instruction(client=client, model=model, config=config, plan=plan, measured=measured)
        for client in clients
    }

    def read(one: Instruction, content: RecordDict, _: object) -> tuple[int, Reported, int]:
        return _read(asker.records, one.client, content, views)

    answers = asker.ask(Question(round=server_round, asked=asked, read=read, purpose="evaluation"))
    if reasons := answers.reasons:
        failures = [Failure.of(server_round, client, *reasons[client]) for client in reasons]
        raise RuntimeError(
            f"round {server_round}: {len(failures)} of {len(asked)} clients did not evaluate "
            f"the model{first_reasons(failures)}"
        )
    for client in asked:
        asker.records.measured(client, model)
    return [Answer(client, *answers.read[client]) for client in sorted(answers.read)]


def _read(
    records: ClientRecords, client: int, content: RecordDict, views: Sequence[str]
) -> tuple[int, Reported, int]:
    """Reads the accuracy and loss of a client, and checks the number of its images.

    Raises:
        ValueError: If the number of test or validation images differs from the first answer of the
            client.
    """
    images, reported, validation = read_measured(messages.metrics_of(content), views)
    stated = [("test", images, records.tested(client, images))]
    if VALIDATION in views:
        first = records.validated(client, validation)
        stated.append((VALIDATION, validation, first))
    for part, now, first in stated:
        if now != first:
            raise ValueError(
                f"it reports {now} {part} images, but it reported {first} at its first evaluation"
            )
    return images, reported, validation
