"""One trial of a search: its proposal, its run, and its outcome in Optuna's database."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_vitlora.checkpoints.logbook import lacks_checkpoints
from fl_vitlora.config import Config
from fl_vitlora.config.search import Search
from fl_vitlora.config.search_dimensions import Choice
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.runner import run
from fl_vitlora.experiment.search_checks import check_trial
from fl_vitlora.experiment.starting import with_start
from fl_vitlora.experiment.watching import Line, Watch
from fl_vitlora.federation.training_round import DivergedError
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.flower.strategies.aggregators import LoadStrategy
from fl_vitlora.reporting.run_folder import CONFIG, find_run, located
from fl_vitlora.rng import derive_seed

if TYPE_CHECKING:
    import optuna

SEEDS = 2**32  # Optuna's seeds are smaller
BY_CALLER = "caller"  # the entry `stopped` of a result if this module has ended the run


class Attempt:
    """One trial of a search.

    Args:
        plan: The search.
        study: Optuna's results of the search.
        folder: The folder of the search.
        engine: The object that keeps Ray running between the trials.
        number: The number of the trial, from 0.
    """

    def __init__(
        self, plan: Search, study: optuna.Study, folder: Path, engine: Engine, number: int
    ) -> None:
        import optuna

        self._plan, self._study, self._engine = plan, study, engine
        seed = derive_seed(plan.shared.seed, "search", number) % SEEDS
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        known = study.get_trials(deepcopy=False)
        interrupted = number < len(known) and known[number].state.name == "RUNNING"
        self._trial = (
            optuna.trial.Trial(study, known[number]._trial_id) if interrupted else study.ask()
        )  # `ask` returns the first trial that waits, or a new one
        self._reported = set(known[number].intermediate_values) if interrupted else set[int]()
        self._place = folder / f"trial-{number:05d}"
        self._pruned = False

    def run(self, load_strategy: LoadStrategy, watch: Watch) -> None:
        """Runs the trial, or continues it, and stores its outcome.

        Args:
            load_strategy: A function that makes the strategy of an experiment.
            watch: The callbacks of the program that started the search.

        Raises:
            PausedError: If the caller has set `watch.pause`.
        """
        values = {name: self._propose(name) for name in self._plan.dimensions}
        self._trial.set_user_attr("folder", self._place.name)
        try:
            result = self._result(values, load_strategy, watch)
        except UserError as error:
            self._fail(f"refused: {' '.join(str(error).split())}")
        except DivergedError as error:
            self._fail(f"diverged: {' '.join(str(error).split())}")
        except RuntimeError as error:
            self._engine.stop()  # the next trial starts with a fresh Ray
            self._fail(f"failed: {' '.join(str(error).split())}")
        else:
            self._end(result)

    def _propose(self, name: str) -> Any:
        """Returns the value of a dimension that Optuna proposes for this trial."""
        dimension = self._plan.dimensions[name]
        if isinstance(dimension, Choice):
            return self._trial.suggest_categorical(name, list(dimension.options))
        if not dimension.whole:
            return self._trial.suggest_float(
                name, dimension.low, dimension.high, step=dimension.step, log=dimension.log
            )
        low, high, step = int(dimension.low), int(dimension.high), int(dimension.step or 1)
        return self._trial.suggest_int(name, low, high, step=step, log=dimension.log)

    def _result(self, values: dict[str, Any], load_strategy: LoadStrategy, watch: Watch) -> Line:
        """Runs the experiment of the trial, and returns the content of `result.json`."""
        config, typed = self._plan.experiment(values), self._plan.typed(values)
        watch.stop.clear()  # this signal has ended the previous trial
        own = dataclasses.replace(
            watch,
            show_round=lambda line: self._note_round(line, watch),
            may_stop=self._plan.pruning is not None,
        )
        begun = self._begun()
        if begun is None:
            if any(self._plan.options):
                check_trial(self._plan, values, load_strategy)
            config = with_start(dataclasses.replace(config, out=str(self._place)), load_strategy)
            return run(config, load_strategy(config), own, engine=self._engine, typed=typed)[0]
        config, result = begun
        if result is not None:  # the program was killed after the run, before it noted the outcome
            return result
        return run(config, load_strategy(config), own, engine=self._engine, resume=True)[0]

    def _begun(self) -> tuple[Config, Line | None] | None:
        """Returns the interrupted run of this trial, and its result, if any; None for a new trial.

        If a run cannot be continued, its folder is not changed, and the trial gets another folder.
        """
        while (self._place / CONFIG).exists():
            begun, result = find_run(self._place)
            if result is not None or not lacks_checkpoints(self._place, begun.checkpoint_every):
                return located(begun, begun, self._place), result
            self._place = self._place.with_name(f"{self._place.name}-again")
            self._trial.set_user_attr("folder", self._place.name)
        return None

    def _note_round(self, line: Line, watch: Watch) -> None:
        """Reports a round to Optuna, and ends the run if Optuna prunes the trial."""
        watch.show_round(line)
        value, number = line[self._plan.goal], line["round"]
        if value is None or not math.isfinite(value):
            return
        if line["measured_on"] != "validation":
            raise UserError(
                f"round {number} was measured on {line['measured_on']} images, and only validation "
                "images may choose settings; set data.validation_fraction or data.validation_split"
            )
        if number not in self._reported:
            self._trial.report(value, number)
        if self._plan.pruning is not None and self._trial.should_prune():
            watch.stop.set()

    def _end(self, result: Line) -> None:
        """Stores the outcome of a trial that has a result."""
        import optuna

        wire, value = result["communication"], result["validation"][self._plan.goal]
        self._trial.set_user_attr("rounds", result["rounds"])
        self._trial.set_user_attr("sent_bytes", wire["uplink_bytes"] + wire["downlink_bytes"])
        self._trial.set_user_attr("seconds", result["seconds"]["total"])
        if not math.isfinite(value):
            self._fail(f"diverged: the validation {self._plan.goal} is {value}")
        elif result["stopped"] == BY_CALLER:
            self._trial.set_user_attr("state", "pruned")
            self._study.tell(self._trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._trial.set_user_attr("state", "complete")
            self._study.tell(self._trial, value)

    def _fail(self, problem: str) -> None:
        import optuna

        self._trial.set_user_attr("problem", problem)
        self._trial.set_user_attr("state", problem.partition(":")[0])
        self._study.tell(self._trial, state=optuna.trial.TrialState.FAIL)
