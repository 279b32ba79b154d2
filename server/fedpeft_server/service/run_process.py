"""The process of one run: the ServerApp, on the link, from its last checkpoint to its end.

``python -m fedpeft_server.service.run_process SERVER_HOME RUN``; the supervisor starts it, and
starts it again when it dies.
Exit code 0: the run has ended, whatever its state; `os.EX_TEMPFAIL`: start it again.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.errors import FedPeftError
from fedpeft.runstore import RunStore
from fedpeft.terminal import clean_output
from fedpeft_server.service.child_process import begin_service, end_with_parent
from fedpeft_server.service.contacts import Contacts
from fedpeft_server.service.held_out_evaluation import HeldOutEvaluation
from fedpeft_server.service.key_sync import listens
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import (
    ENDED,
    RunStatus,
    ServerHome,
    read_status,
    take_lock,
    write_status,
)

if TYPE_CHECKING:
    from flwr.serverapp import Grid, ServerApp

    from fedpeft_server.rounds.run_terms import Enrolled, EnrolledNode

STOPPED = "stopped by the operator"
_LINK_SECONDS = 60.0
_LOCK_SECONDS = 20.0
_PAUSE = 0.2


@dataclass
class Runner:
    """One attempt at a run.

    Attributes:
        home: the coordinator.
        run: the run directory.
        stop: ends the rounds when it is set.
        contacts: when each node was last heard of.
        evaluation: held-out figures on the coordinator's own records, if there are some.
        entered: whether the round loop was reached: what goes wrong before is not the run's fault.
    """

    home: ServerHome
    run: Path
    stop: threading.Event = field(default_factory=threading.Event)
    contacts: Contacts = field(init=False)
    evaluation: HeldOutEvaluation = field(init=False)
    entered: bool = False

    def __post_init__(self) -> None:
        self.contacts = Contacts(self.run)
        self.evaluation = HeldOutEvaluation(RunStore(self.run))

    def main(self) -> int:
        """Run to the end; the exit code."""
        status = read_status(self.run)
        if status.state in ENDED:
            return 0
        if self._asked_to_stop():
            return self._end(status.to("stopped", STOPPED))
        if status.state != "running":
            write_status(self.run, status.to("running"))
        threading.Thread(target=self._watch_for_stop, daemon=True, name="fedpeft-stop").start()
        return self._attempt()

    def _attempt(self) -> int:
        try:
            self._await_link()
            self._rounds()
        except FedPeftError as error:
            status = read_status(self.run)
            if self._asked_to_stop():
                return self._end(status.to("stopped", STOPPED))
            if self._may_be_repeated(error):
                print(f"to be started again: {error}", file=sys.stderr)
                return os.EX_TEMPFAIL
            return self._end(status.to("failed", str(error)))
        return self._end(read_status(self.run).to("done"))

    def _rounds(self) -> None:
        """All rounds that are left, and the adapter."""
        from fedpeft.flower import hush, run_server_app
        from fedpeft_server.app import make_app
        from fedpeft_server.rounds.final_adapter import export_adapter

        hush()
        enrolled = enrolment(self.home)
        inner = make_app(self._report, self.run, self.stop, enrolled)
        with self.evaluation.beside():
            run_server_app(self.home.link, self._noted(inner), {}, self.run / "flower_run")
        export_adapter(self.run)

    def _report(self, event: dict[str, Any]) -> None:
        self.contacts.report(event)
        self.evaluation.report(event)

    def _may_be_repeated(self, error: FedPeftError) -> bool:
        """Whether this attempt ended and not the run: stopped, not begun, or without a link."""
        from fedpeft.flower import Fault, RunEnded

        lost = isinstance(error, Fault | RunEnded) or not listens(self.home.settings.inside_port)
        return self.stop.is_set() or not self.entered or lost

    def _noted(self, inner: ServerApp) -> ServerApp:
        """The app, with Flower's id of this attempt and the nodes that are online written down."""
        from flwr.app import Context
        from flwr.serverapp import ServerApp

        made = ServerApp()

        @made.main()
        def main(grid: Grid, context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
            self.entered = True
            write_status(self.run, replace(read_status(self.run), flower_run=context.run_id))
            with self.contacts.watching(grid, Registry(self.home)):
                inner(grid=grid, context=context)

        return made

    def _await_link(self) -> None:
        end = time.monotonic() + _LINK_SECONDS
        while not listens(self.home.settings.inside_port):
            if self.stop.wait(_PAUSE) or time.monotonic() > end:
                raise FedPeftError(f"no link on port {self.home.settings.inside_port}")

    def _asked_to_stop(self) -> bool:
        return (self.run / "stop").exists()

    def _watch_for_stop(self) -> None:
        while not self._asked_to_stop():
            time.sleep(_PAUSE)
        self.stop.set()

    def _end(self, status: RunStatus) -> int:
        write_status(self.run, status)
        return 0


def enrolment(home: ServerHome) -> Enrolled:
    """Who may take part, read anew each time it is asked for, and the coordinator's key."""
    from fedpeft_server.rounds.run_terms import Enrolled, EnrolledNode

    def keys() -> Mapping[str, EnrolledNode]:
        nodes = Registry(home).enrolled()
        return {
            name: EnrolledNode(name, node.transport.encode(), bytes.fromhex(node.signing))
            for name, node in nodes.items()
        }

    return Enrolled(keys=keys, signer=home.signer)


def main(arguments: list[str]) -> int:
    """The process; waits for a former one of the same run that is still ending."""
    home = ServerHome.open(Path(arguments[0]))
    run = home.run(arguments[1])
    runner = Runner(home, run)
    begin_service(runner.stop, run / "flower")
    end_with_parent(runner.stop)
    end = time.monotonic() + _LOCK_SECONDS
    while (lock := take_lock(run / "runner.lock")) is None:
        if time.monotonic() > end:
            print("another process works on this run", file=sys.stderr)
            return os.EX_TEMPFAIL
        time.sleep(_PAUSE)
    with lock:
        return runner.main()


def _exit(arguments: list[str]) -> int:
    """Run `main`; a known error before the run is reached is one line, a full disk one that may pass."""
    try:
        return main(arguments)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"to be started again: {error.strerror}", file=sys.stderr)
        return os.EX_TEMPFAIL
    except FedPeftError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    with clean_output():
        sys.exit(_exit(sys.argv[1:]))
