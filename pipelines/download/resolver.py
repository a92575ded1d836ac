"""Name resolution that hands out only addresses a fetcher may connect to.

The connection is made to the very addresses that were checked here, so a name that changes its answer
between two lookups (DNS rebinding), or to which a redirect leads, gains nothing.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor

from aiohttp.abc import AbstractResolver, ResolveResult

from pipelines.core.pipeline import Rejected
from pipelines.download.config import AllowedHost
from pipelines.download.urls import WebAddress, refused_address

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""The IP addresses of a host name; raises `socket.gaierror` as `getaddrinfo` does."""

Refusal = Callable[[str], str | None]
"""Why an IP address may not be connected to, or None."""

_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def system_lookup(executor: Executor) -> Lookup:
    """Lookups by the operating system, in the threads of `executor`."""

    def addresses(host: str) -> list[str]:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))

    async def lookup(host: str) -> Sequence[str]:
        return await asyncio.get_running_loop().run_in_executor(executor, addresses, host)

    return lookup


class GuardedResolver(AbstractResolver):
    """Addresses of names, each one checked.

    Args:
        lookup: where the addresses of a name come from.
        allowed: hosts with an address of their own, which is not checked.
        timeout_s: seconds for one lookup.
        refusal: the check of an address.
    """

    def __init__(
        self,
        lookup: Lookup,
        allowed: Mapping[str, AllowedHost],
        timeout_s: float,
        refusal: Refusal = refused_address,
    ) -> None:
        self._lookup = lookup
        self._allowed = allowed
        self._timeout_s = timeout_s
        self._refusal = refusal

    def check_literal(self, address: WebAddress) -> None:
        """Nothing, if `address` is a name or an IP address that may be connected to.

        The HTTP client never asks a resolver about IP addresses, hence this second door.

        Raises:
            Rejected: address_refused.
        """
        if not address.is_literal or self._allowed.get(address.host) == AllowedHost(
            address.host, address.port
        ):
            return
        word = self._refusal(address.host)
        if word:
            raise Rejected("address_refused", f"{word}: {address.host}")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of `host`, all of them permitted.

        Raises:
            Rejected: host_not_found, dns_failed, or address_refused if any of its addresses is.
        """
        target = self._allowed.get(host.rstrip("."))
        if target is not None:
            return [_result(host, target.ip, target.port)]
        addresses = await self._addresses(host)
        words = sorted(word for word in map(self._refusal, addresses) if word)
        if words:
            raise Rejected("address_refused", f"{words[0]}: address of {host}")
        return [_result(host, address, port) for address in addresses]

    async def _addresses(self, host: str) -> Sequence[str]:
        try:
            addresses = await asyncio.wait_for(self._lookup(host), self._timeout_s)
        except TimeoutError:
            raise Rejected("dns_failed", "no answer in time") from None
        except socket.gaierror as error:
            reason = "host_not_found" if error.errno in _NO_SUCH_NAME else "dns_failed"
            raise Rejected(reason) from None
        except UnicodeError:
            raise Rejected("url_invalid", "the host is no valid name") from None
        if not addresses:
            raise Rejected("host_not_found")
        return addresses

    async def close(self) -> None:
        """Nothing: the executor of the lookups belongs to whoever made it."""


def _result(host: str, ip: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=ip, port=port, family=family, proto=0, flags=flags)
