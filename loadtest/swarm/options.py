"""What `locust -f loadtest/locustfile.py` takes besides Locust's own options (a group of its own in `--help`)."""

from __future__ import annotations

from typing import Any

from configargparse import ArgumentParser

from loadtest.openloop.workload import Workload


def add_options(parser: ArgumentParser, **_: Any) -> None:
    """Listener of `init_command_line_parser`."""
    group = parser.add_argument_group("kunlun")
    group.add_argument("--rate-per-user", type=float, default=1.0, help="calls per second of one Locust user (default: 1)")
    group.add_argument("--world", default="", metavar="DIR", help="a synthetic log (kunlun prepare): the truth about clicks")
    group.add_argument("--population", type=int, default=300, help="people per worker, by a Zipf law (default: 300)")
    group.add_argument("--user-zipf", type=float, default=0.8, help="exponent of that law (default: 0.8)")
    group.add_argument("--history-mean", type=float, default=12.0, help="mean events of a person at first (default: 12)")
    group.add_argument("--candidates-mean", type=float, default=40.0, help="mean candidates of a Rank (default: 40)")
    group.add_argument("--candidates-max", type=int, default=400, help="most candidates of a Rank (default: 400)")
    group.add_argument("--item-count", type=int, default=400, help="items i0, i1, … of class RankOnly (default: 400)")
    group.add_argument("--shown", type=int, default=10, help="items of a list that are looked at (default: 10)")
    group.add_argument("--call-timeout-ms", type=float, default=1000.0, help="deadline of a call (default: 1000)")
    group.add_argument("--max-ranks", type=int, default=0, help="end the run after so many Ranks; 0: by its time (default: 0)")
    group.add_argument("--load-seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    group.add_argument("--slo-p50-ms", type=float, default=0.0, help="bound on the median of Rank; 0: none (default: 0)")
    group.add_argument("--slo-p99-ms", type=float, default=0.0, help="bound on the 99th percentile of Rank (default: 0)")
    group.add_argument("--slo-failed", type=float, default=0.001, help="share of calls that may fail (default: 0.001)")
    group.add_argument("--report", default="", metavar="FILE", help="write the closing JSON object here, too")
    group.add_argument("--peak-users", type=int, default=0, help="of ramp and spike shapes (default: 0)")
    group.add_argument("--shape-seconds", type=float, default=60.0, help="length of ramp and spike shapes (default: 60)")
    group.add_argument("--first-guess", type=float, default=50.0, help="rate at which the capacity search begins (default: 50)")
    group.add_argument("--probe-seconds", type=float, default=10.0, help="length of its runs at one rate (default: 10)")


def workload_of(options: Any, seed: int, seconds: float, *, items: int) -> Workload:
    """The calls of one Locust user."""
    return Workload(
        rate=options.rate_per_user,
        seconds=seconds,
        seed=seed,
        users=options.population,
        user_zipf=options.user_zipf,
        items=items,
        candidates_mean=min(options.candidates_mean, items),
        candidates_max=min(options.candidates_max, items),
        deadline_ms=options.call_timeout_ms,
    )
