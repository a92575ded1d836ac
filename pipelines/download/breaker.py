"""When a host is left alone: pauses after an overload, and a circuit breaker after failures.

- A host that responds 429 or 503 is paused for all its links (`PausePolicy`; kept by `host_queue.HostQueue`).
- `CircuitBreaker` stops requests to hosts that repeatedly fail to connect or to finish a response in time.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.core.pipeline import Rejected

MAX_REMEMBERED = 65_536
"""Hosts with failures that are remembered; the one whose last failure is oldest is forgotten first."""


class CircuitOpen(Rejected):
    """No request was made, since the host is closed for now; carries the reason of its last failure."""


@dataclass(frozen=True)
class PausePolicy:
    """How long a host is left alone after 429 or 503, and what one host may cost the links of one call.

    The first pause is that of Retry-After, else `first_s`; with each further overload in a row it is at least twice as
    long. After a pause the host gets one request at a time; each good response allows one more.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    """A longer pause closes the host instead: its links get the reason of the response and are not requested."""
    max_in_row: int = 5
    """Overloads in a row that close the host."""
    closed_s: float = 300.0
    """Seconds for which it stays closed, Retry-After if that is longer."""
    budget_s: float = 300.0
    """Seconds of pauses and of links that timed out, per call, after which the host is closed."""


@dataclass(frozen=True)
class Pause:
    """A host that is not asked before `until` (time of the loop); with a refusal, its links do not wait for that."""

    until: float
    refusal: Rejected | None = None


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
"""Reasons that no response began."""

HOST_FAILURES = NO_CONNECTION | {"timeout", "read_timeout"}
"""Reasons that count as a failure of the host. A response that came to its end, however bad, resets the count."""

Origin = tuple[str, int]
"""Host and port."""


@dataclass
class _Circuit:
    num_failures: int = 0
    open_until: float = 0.0
    last: Rejected | None = None


class CircuitBreaker:
    """Counts failures in a row (`HOST_FAILURES`) for each host and port, and stops requests after too many.

    A link that is not tried gets the reason and detail of the last failure, the same that it would have got
    by trying. So the ledger does not depend on the order in which links were tried.

    Args:
        failures: failures in a row that open the circuit.
        pause_s: seconds for which it stays open.
        clock: the time in seconds.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._failures = failures
        self._pause_s = pause_s
        self._clock = clock
        self._circuits: OrderedDict[Origin, _Circuit] = OrderedDict()

    def check(self, origin: Origin) -> None:
        """Nothing, if `origin` may be tried. After the pause, one request at a time may try it.

        Raises:
            CircuitOpen: with the reason of the last failure.
        """
        circuit = self._circuits.get(origin)
        if circuit is None or circuit.num_failures < self._failures:
            return
        now = self._clock()
        if now < circuit.open_until:
            assert circuit.last is not None
            raise CircuitOpen(circuit.last.reason, circuit.last.detail)
        circuit.open_until = now + self._pause_s

    def failed(self, origin: Origin, rejected: Rejected) -> None:
        """Counts a failure of `origin`."""
        circuit = self._circuits.setdefault(origin, _Circuit())
        self._circuits.move_to_end(origin)
        circuit.num_failures += 1
        circuit.last = Rejected(rejected.reason, rejected.detail)
        if circuit.num_failures >= self._failures:
            circuit.open_until = self._clock() + self._pause_s
        if len(self._circuits) > MAX_REMEMBERED:
            self._circuits.popitem(last=False)

    def succeeded(self, origin: Origin) -> None:
        """Closes the circuit of `origin`: a response came to its end."""
        self._circuits.pop(origin, None)
