"""Starts Ray on this machine, or joins a cluster that already runs, in a background thread."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.quiet import silence
from fl_vitlora.flower.simulation.ray_environment import (
    SECONDS_TO_START,
    hangup_blocked,
    job_with_own_path,
    let_workers_import_this_package,
    loopback_alone,
    patient_start,
    sigterm_as_before,
)
from fl_vitlora.flower.simulation.ray_helpers import few_helpers
from fl_vitlora.flower.simulation.workers import Workers
from fl_vitlora.storage.session_folder import session_folder

if TYPE_CHECKING:
    from fl_vitlora.training.gpu_memory import Memory

WARM_UP = "fl_vitlora.flower.simulation.warm_up"
# The niceness of workers. On a machine with three other busy programs, the first round took 131 s
# with Ray's default of 15, and 24 s with 0.
NICENESS = 0
SECONDS_TO_END = 10.0
SECONDS_TO_STOP = 30.0


class Ray:
    """The connection to Ray, which a separate thread starts or joins.

    Ray's processes end with the thread that started them. Therefore this thread lives until `stop`
    is called.

    Args:
        workers: The workers that Ray must have room for.
        verbose: True if Ray may print and log.

    Attributes:
        workers: The workers that Ray was started for.
        actors: Ray actors that the last simulation left for the next one.
        measured: The settings of the last memory measurement, and the GPU memory that a worker
            needed; None before the first measurement.
    """

    def __init__(self, workers: Workers, *, verbose: bool) -> None:
        self.workers = workers
        self.actors: list[Any] = []
        self.measured: tuple[object, Memory] | None = None
        self._actors_serve: Workers | None = None  # the settings with which the actors were made
        self._verbose = verbose
        self._error: Exception | None = None
        self._folder = contextlib.ExitStack()
        self._up, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until Ray has started or the cluster is joined.

        Raises:
            UserError: If the cluster cannot be joined, or Ray does not start for a reason that the
                user can correct.
            RuntimeError: If Ray does not start for any other reason.
        """
        self._up.wait()
        if self._error is not None and self.workers.address:
            raise UserError(
                f"engine.ray_address {self.workers.address}: cannot join the cluster: {self._error}"
            ) from self._error
        if self._error is not None:
            if isinstance(self._error, UserError):
                raise self._error
            raise RuntimeError(f"Ray cannot start: {self._error}") from self._error

    def actors_for(self, workers: Workers) -> list[Any]:
        """Returns the remaining actors if they fit the next simulation; otherwise ends them.

        The actors fit if they were started with the same settings of the workers.

        Args:
            workers: The settings of the workers in the next simulation.

        Returns:
            The list of actors, which the next simulation keeps up to date.
        """
        if workers != self._actors_serve:
            self.end_actors()
            self._actors_serve = workers
        return self.actors

    def end_actors(self) -> None:
        """Ends the remaining actors, and waits until their memory is free again."""
        if not self.actors:
            return
        import ray

        processes = [process for actor in self.actors if (process := _process_of(actor))]
        for actor in self.actors:
            ray.kill(actor)
        self.actors.clear()
        deadline = time.monotonic() + SECONDS_TO_END
        while any(map(_runs, processes)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        """Stops Ray and its workers. In a joined cluster, only this program's workers stop.

        If Ray does not stop within `SECONDS_TO_STOP` seconds, this method returns without waiting
        longer. Ray's processes then end with the program.
        """
        self.actors.clear()
        self._ended.set()
        self._thread.join(SECONDS_TO_STOP)

    def _live(self) -> None:
        """Starts or joins Ray, waits for `stop`, and shuts Ray down.

        The thread of this object runs this method.
        """
        try:
            import ray

            let_workers_import_this_package()
            if not self._verbose:
                silence()
            if self._ended.is_set():
                return  # `stop` was called during the import
            with self._surroundings():
                ray.init(
                    configure_logging=self._verbose,
                    log_to_driver=self._verbose,
                    logging_level=logging.INFO if self._verbose else logging.CRITICAL,
                    job_config=job_with_own_path(),
                    **(self._joining() if self.workers.address else self._starting()),
                )
        except Exception as error:  # `wait` raises the error again
            self._error = error
        self._up.set()
        self._ended.wait()
        if self._error is None:
            ray.shutdown()  # in a joined cluster, this stops only this program's workers
        self._folder.close()

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Changes, inside the block, how Ray starts or is joined."""
        with contextlib.ExitStack() as changes:
            if not self.workers.address:
                changes.enter_context(loopback_alone())
                changes.enter_context(few_helpers(logs=self._verbose))
            changes.enter_context(patient_start())
            changes.enter_context(sigterm_as_before())
            changes.enter_context(hangup_blocked())
            yield

    def _starting(self) -> dict[str, Any]:
        """Returns the arguments of `ray.init` that start a new Ray on this machine."""
        return {
            **self._folder.enter_context(session_folder()),
            "address": "local",  # a new Ray, even if another one runs on this machine
            "num_cpus": self.workers.count,
            "num_gpus": self.workers.gpus,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_system_config": {
                "preload_python_modules": [WARM_UP],
                "worker_niceness": NICENESS,
                "agent_register_timeout_ms": int(1000 * SECONDS_TO_START),
            },
        }

    def _joining(self) -> dict[str, Any]:
        """Returns the arguments of `ray.init` to join a cluster with this program's import path."""
        path = {"PYTHONPATH": os.environ["PYTHONPATH"]}
        return {"address": self.workers.address, "runtime_env": {"env_vars": path}}


def _process_of(actor: Any) -> int | None:
    """Returns the process id of an actor on this machine, or None if the actor does not answer."""
    import ray

    try:
        return int(ray.get(actor.process.remote(), timeout=SECONDS_TO_END))
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None


def _runs(process: int) -> bool:
    """Returns True if a process with this id exists."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True
