"""Checkpoints: stores the state of a run, and continues a run from a stored state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_vitlora.checkpoints.logbook import Checkpoint, Logbook
from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.details import Details
from fl_vitlora.experiment.provenance import Provenance, changes
from fl_vitlora.experiment.record import Record
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.federation.aggregator import Aggregator
from fl_vitlora.federation.evaluation import Score
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import write_nothing
from fl_vitlora.flower.server.client_states import ClientStates, to_tree
from fl_vitlora.flower.server.transport import Transport


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """An object that stores the state of a run after rounds, and restores the state of a run.

    Attributes:
        config: The configuration of the experiment.
        place: The path of the run folder, for error messages.
        provenance: Everything except the configuration on which the exact numbers of the run
            depend, for example the versions of libraries.
        states: The stored states of the simulated clients.
        transport: The object that sends instructions to clients and receives their updates.
        aggregator: The object through which the server loop calls the aggregation strategy.
        record: The record of the rounds, the sent bytes and the accuracy so far.
        logbook: The object that writes checkpoints into the run folder.
        watch: The callbacks of the program that started the run.
    """

    config: Config
    place: Path
    provenance: Provenance
    states: ClientStates
    transport: Transport
    aggregator: Aggregator
    record: Record
    logbook: Logbook
    watch: Watch

    def keep(self, server_round: int, model: GlobalModel) -> Callable[[], None]:
        """Copies the state after a round.

        Args:
            server_round: The number of the round, from 1.
            model: The global model after the round.

        Returns:
            A function without arguments that writes the copied state. If no checkpoint is due after
            this round, the function does nothing.
        """
        if not self.states.followed or not self._is_due(server_round):
            return write_nothing
        clients, entries = self.states.now(), self.record.ledger.prefix()
        server = {
            "circumstances": dataclasses.asdict(self.provenance),
            "changes": list(self.record.changes),
            "model": model.snapshot(),
            "strategy": self.aggregator.snapshot(),
            "transport": self.transport.snapshot(),
        }

        def write() -> None:
            measured = {
                "measured": self.record.measured,
                "details": self.record.details.to_tree(),
            }
            self.logbook.write(server_round, server | measured, entries, clients, to_tree)

        return write

    def _is_due(self, server_round: int) -> bool:
        every = self.config.checkpoint_every
        last = server_round == self.config.rounds
        due = bool(every) and (server_round % every == 0 or last)
        ends = bool(every) and self.record.stopped is not None
        return due or ends or self.watch.pause.is_set()

    def take_up(self, checkpoint: Checkpoint) -> GlobalModel:
        """Restores the state of a run from a checkpoint.

        The ledger (the list of all messages) of the checkpoint replaces the ledger of this process.
        Therefore the first messages of a run, in which the server asks each client for its number,
        are counted only once.

        Returns:
            The model of the checkpoint.

        Raises:
            UserError: If the device, the key, the classes, the weights or the strategy have changed
                since the run began.
        """
        server = checkpoint.server
        before = Provenance(**server["circumstances"])
        self._compare(before)
        self.record.changes.extend(server["changes"])
        if changed := changes(before.may_change, self.provenance.may_change):
            self.record.changes.append({"after_round": checkpoint.round, "changed": changed})
            self.watch.announce(f"the run continues with another {', '.join(changed)} than before")
        self.transport.restore(server["transport"])
        self.aggregator.restore(*server["strategy"])
        measured = {view: Score(*values) for view, values in server["measured"].items()}
        details = Details.of_tree(server.get("details"))
        self.record.take_up(checkpoint.ledger, checkpoint.lines, measured, details)
        return GlobalModel.restored(server["model"])

    def _compare(self, before: Provenance) -> None:
        """Refuses to resume a run if its device, key, classes, weights or strategy have changed."""
        now = self.provenance.must_stay
        known = {"strategy": now["strategy"], **before.must_stay}  # old checkpoints lack "strategy"
        for what, (was, is_) in changes(known, now).items():
            raise UserError(
                f"{self.place} began with {what} {was} and can continue only with this value, but "
                f"now the {what} would be {is_}"
            )
