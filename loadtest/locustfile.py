"""Load with Locust: `locust -f loadtest/locustfile.py --host HOST:PORT --world runs/bench/data`; see docs/loadtesting.md.

Locust users are sources of calls: as many of them as calls per second (`--rate-per-user 1`). Give a shape with another `-f`:
`-f loadtest/locustfile.py,loadtest/swarm/ramp.py`.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest.swarm.measures import KEY
from loadtest.swarm.options import add_options
from loadtest.swarm.report import report, write_report
from loadtest.swarm.rows import GRPC, keep_three_figures
from loadtest.swarm.users import OpenLoopUser, Passerby, Visitor
from loadtest.swarm.worker import Worker

FINISH, FINISHED = "kunlun_finish", "kunlun_finished"
LEEWAY_S = 30.0

__all__ = ["Passerby", "Visitor"]

keep_three_figures()
events.init_command_line_parser.add_listener(add_options)


@events.init.add_listener
def on_init(environment: Environment, **_: Any) -> None:
    """Join the parts of one process together."""
    worker, runner = Worker(environment), environment.runner
    OpenLoopUser.worker = worker

    @environment.events.test_start.add_listener
    def on_test_start(environment: Environment, **_: Any) -> None:
        worker.clear()
        if not isinstance(runner, MasterRunner):
            worker.begin()

    @environment.events.test_stop.add_listener
    def on_test_stop(environment: Environment, **_: Any) -> None:
        if not isinstance(runner, MasterRunner):
            worker.end()

    @environment.events.report_to_master.add_listener
    def on_report_to_master(client_id: str, data: dict[str, Any]) -> None:
        data[KEY] = worker.measures.take()

    @environment.events.worker_report.add_listener
    def on_worker_report(client_id: str, data: dict[str, Any]) -> None:
        worker.measures.add(data[KEY])
        if data[KEY]["faults"]:
            worker.end_run()

    if isinstance(runner, WorkerRunner):

        def on_finish(environment: Environment, msg: Any, **_: Any) -> None:
            worker.finish()
            runner._send_stats()  # in order before the message that follows
            runner.send_message(FINISHED)

        runner.register_message(FINISH, on_finish, concurrent=True)  # heartbeats go on meanwhile
        return

    if isinstance(runner, MasterRunner):
        finished: set[str] = set()
        runner.register_message(FINISHED, lambda environment, msg, **_: finished.add(msg.node_id))

        @environment.events.test_stopping.add_listener
        def on_test_stopping(environment: Environment, **_: Any) -> None:
            """Locust waits half a second for workers' last figures: visits take longer."""
            finished.clear()
            runner.send_message(FINISH)
            deadline = time.monotonic() + worker.patience_s + LEEWAY_S
            while not {client.id for client in runner.clients.all} <= finished and time.monotonic() < deadline:
                gevent.sleep(0.1)

    @environment.events.request.add_listener
    @environment.events.worker_report.add_listener
    def on_progress(**_: Any) -> None:
        most, ranks = worker.options.max_ranks, environment.stats.entries.get(("Rank", GRPC))
        if most and ranks is not None and ranks.num_requests >= most:
            worker.end_run()

    found: dict[str, Any] = {}

    @environment.events.quitting.add_listener
    def on_quitting(environment: Environment, **_: Any) -> None:
        found.update(report(environment, worker.measures, worker.capacity))
        environment.process_exit_code = 0 if found["ok"] else 1

    @environment.events.quit.add_listener
    def on_quit(exit_code: int, **_: Any) -> None:
        write_report(found, worker.options.report)
