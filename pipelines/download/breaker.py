"""The circuit breaker: hosts that do not even take a connection are not tried again for a while."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.download.reasons import Rejected

MAX_REMEMBERED = 65_536
"""Hosts with failures that are remembered; the one longest without news is forgotten first."""

NO_CONNECTION = frozenset(
    {
        "host_not_found",
        "dns_failed",
        "connect_refused",
        "connect_timeout",
        "connect_failed",
        "tls_untrusted",
        "tls_failed",
    }
)
"""Reasons that count against a host. A response, however bad, counts for it."""

Origin = tuple[str, int]


class HostIsDead(Rejected):
    """Nothing was tried, since the host is known not to answer; carries the reason that it died of."""


@dataclass
class _Record:
    num_failures: int = 0
    closed_until: float = 0.0
    last: Rejected | None = None


class DeadHosts:
    """Counts failed connections in a row for each host and port.

    A link that is not tried gets the reason and detail that its host died of, the same that it would
    have got by trying. So the ledger does not depend on which links happened to come first.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._failures = failures
        self._pause_s = pause_s
        self._clock = clock
        self._records: OrderedDict[Origin, _Record] = OrderedDict()

    def check(self, origin: Origin) -> None:
        """Nothing, if `origin` may be tried. After the pause, one request at a time may try it.

        Raises:
            HostIsDead: with the reason of the last failure, if it is dead.
        """
        record = self._records.get(origin)
        if record is None or record.num_failures < self._failures:
            return
        now = self._clock()
        if now < record.closed_until:
            assert record.last is not None
            raise HostIsDead(record.last.reason, record.last.detail)
        record.closed_until = now + self._pause_s

    def failed(self, origin: Origin, rejected: Rejected) -> None:
        """No connection to `origin`, for this reason."""
        record = self._records.setdefault(origin, _Record())
        self._records.move_to_end(origin)
        record.num_failures += 1
        record.last = Rejected(rejected.reason, rejected.detail)
        if record.num_failures >= self._failures:
            record.closed_until = self._clock() + self._pause_s
        if len(self._records) > MAX_REMEMBERED:
            self._records.popitem(last=False)

    def answered(self, origin: Origin) -> None:
        """`origin` lives."""
        self._records.pop(origin, None)
