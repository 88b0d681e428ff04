"""HTTPS: reads from web servers, but not from networks that only this worker can reach.

The host is resolved here, each of its addresses is checked, and the connection goes to the checked address itself, so
that a second DNS answer cannot redirect it. Certificate and SNI are still those of the host's name.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import NamedTuple
from urllib.parse import urljoin

import urllib3
from pipeq.contract import shown
from pipeq.contract.errors import Blame, SettingsError
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from pipeq_worker.observe.own_faults import is_own_fault_of_call
from pipeq_worker.stores.addresses import Network, is_public
from pipeq_worker.stores.base import Access, Fault, Prefixes, Source, Store, StoreError, display, is_below
from pipeq_worker.stores.deadline import TimedHttpsPool, look_up
from pipeq_worker.stores.https_url import HttpsUrl

_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Statuses that a later try may not get: too early, too many requests, request timeout. All 5xx count, too.
_PASSING = frozenset({408, 425, 429})
#: Number of hosts whose connections are kept open between fetches.
_KEPT_HOSTS = 32


class HttpsPlace(NamedTuple):
    """The URL to read, and the prefixes below which it must stay if the server redirects."""

    url: HttpsUrl
    prefixes: Prefixes


class Https(Store):
    """Reads from web servers. It uses no proxy from the environment.

    Raises (from the constructor):
        SettingsError: ``private_networks`` or ``ca_bundle`` cannot be used.
    """

    scheme = "https"

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        inputs = access.inputs
        self._networks = tuple(_network(entry) for entry in inputs.private_networks)
        try:
            context = ssl.create_default_context(cafile=inputs.ca_bundle)
        except OSError as error:
            raise SettingsError(f"inputs.ca_bundle: cannot use {inputs.ca_bundle}: {error}") from error
        self._pools = urllib3.PoolManager(
            num_pools=_KEPT_HOSTS,
            maxsize=access.connections,
            ssl_context=context,
            timeout=urllib3.Timeout(connect=access.timeout_s, read=access.timeout_s),
            # We handle retries and redirects, because urllib3 would follow redirects unchecked.
            retries=False,
        )
        self._pools.pool_classes_by_scheme = {"https": TimedHttpsPool}

    @classmethod
    def prefix(cls, entry: str) -> HttpsUrl:
        try:
            url = HttpsUrl.parse(entry)
        except ValueError as error:
            raise ValueError(f"cannot be used: {error}") from error
        if url.query or "#" in entry:
            raise ValueError("has a query or a fragment, which is not compared: drop it")
        return url

    @classmethod
    def check(cls, uri: str, prefixes: Prefixes, name: str | None = None) -> HttpsPlace:
        try:
            url = HttpsUrl.parse(uri)
        except ValueError as error:
            raise StoreError(Fault.REFUSED, f"{name or display(uri)} is not read: {error}") from error
        for entry in prefixes.entries:
            if (url.host, url.port) == (entry.host, entry.port) and is_below(url.path, entry.path):
                return HttpsPlace(url, prefixes)
        raise prefixes.forbidden(uri, f"https://{url.netloc}/", name)

    @contextmanager
    def open(self, place: HttpsPlace, name: str) -> Iterator[Source]:
        """Follows redirects to https:// only, and checks each hop like the first URL."""
        response, name = self._request(place, name)
        try:

            def read(size: int) -> bytes:
                with _translated(name):
                    return response.read(size, decode_content=False)

            yield Source(_size(response, name), read)
        finally:
            # A connection that was read to the end is back in its pool by now; any other one cannot be reused.
            response.close()

    def server(self, place: HttpsPlace) -> str:
        return f"https://{place.url.netloc}"

    def close(self) -> None:
        self._pools.clear()

    def _request(self, place: HttpsPlace, name: str) -> tuple[urllib3.BaseHTTPResponse, str]:
        url, target = place.url, None
        for _ in range(_MAX_REDIRECTS + 1):
            if target is not None:
                url = self.check(target, place.prefixes, name).url
            response = self._send(url, name)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                _check_answer(response, name)
                return response, name
            response.close()
            try:
                target = urljoin(str(url), location)
            except ValueError as error:
                reason = f"{name} redirects to {display(location)!r}, which is no URL"
                raise StoreError(Fault.PERMANENT, reason) from error
            name = f"{display(str(url))} (redirected to {display(target)})"
        raise StoreError(Fault.PERMANENT, f"{name} has more than {_MAX_REDIRECTS} redirects")

    def _send(self, url: HttpsUrl, name: str) -> urllib3.BaseHTTPResponse:
        *others, last = self._addresses(url, name)
        for address in others:
            try:
                return self._send_to(address, url)
            except (NewConnectionError, ConnectTimeoutError):
                # As in browsers: the next address is tried, because a worker with only IPv4 cannot use a host's IPv6
                # address.
                continue
            except (HTTPError, HTTPException, ValueError) as error:
                raise _unavailable(name, error) from error
        with _translated(name):
            return self._send_to(last, url)

    def _send_to(self, address: str, url: HttpsUrl) -> urllib3.BaseHTTPResponse:
        pool = self._pools.connection_from_host(
            address, url.port, scheme="https", pool_kwargs={"server_hostname": url.host}
        )
        # No compression is asked for, because a compressed size does not bound the unpacked size.
        headers = {"Host": url.netloc, "Accept-Encoding": "identity", "User-Agent": "pipeq"}
        return pool.urlopen("GET", url.target, headers=headers, redirect=False, preload_content=False)

    def _addresses(self, url: HttpsUrl, name: str) -> list[str]:
        """Returns the host's addresses after checking each; one forbidden address is enough to refuse the host."""
        try:
            found = look_up(url.host, url.port, self._access.timeout_s)
        except (OSError, UnicodeError) as error:
            reason = f"{name} cannot be reached: {url.host} has no address ({shown.line(str(error))})"
            blame = Blame.WORKER if is_own_fault_of_call(error) else Blame.TASK
            raise StoreError(Fault.PASSING, reason, blame=blame) from error
        # Only link-local addresses have a scope ("%eth0"); they are checked without it.
        addresses = list(dict.fromkeys(address.partition("%")[0] for address in found))
        for address in addresses:
            if not is_public(ipaddress.ip_address(address), self._networks):
                raise StoreError(
                    Fault.REFUSED,
                    f"{name} is not read: {url.host} is {address}, which is not on the public Internet; to allow that,"
                    f" add its network to [inputs] private_networks",
                )
        return addresses


def _network(entry: str) -> Network:
    try:
        return ipaddress.ip_network(entry)
    except ValueError as error:
        raise SettingsError(f"inputs.private_networks: {error}") from error


def _size(response: urllib3.BaseHTTPResponse, name: str) -> int | None:
    """The size that an answer declares; None if it declares none."""
    length = response.headers.get("Content-Length")
    if length is None or response.headers.get("Transfer-Encoding") is not None:
        return None
    # Python parses no number of more than 4,300 digits, and no size needs more than 18.
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        reason = f"{name} is said to have {shown.line(length, 40)!r} bytes, which is no size"
        raise StoreError(Fault.PERMANENT, reason)
    return int(length)


def _check_answer(response: urllib3.BaseHTTPResponse, name: str) -> None:
    status = response.status
    encoding = response.headers.get("Content-Encoding", "identity")
    if status == 200 and encoding.lower() in ("identity", ""):
        return
    response.close()
    if status == 200:
        reason = f"{name} comes with Content-Encoding {shown.line(encoding, 40)!r}, though it was asked for without"
        raise StoreError(Fault.UNDECODABLE, reason)
    if status in (404, 410):
        raise StoreError(Fault.MISSING, f"{name} does not exist (HTTP {status})")
    if status in (401, 403):
        reason = f"{name}: the server refused this worker, which has no credentials for it (HTTP {status})"
        raise StoreError(Fault.REFUSED, reason)
    passing = status in _PASSING or status >= 500
    raise StoreError(Fault.PASSING if passing else Fault.PERMANENT, f"{name} answers HTTP {status}")


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        # http.client raises ValueError for a chunk of negative size.
        raise _unavailable(name, error) from error


def _unavailable(name: str, error: Exception) -> StoreError:
    certificate = isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
    if certificate:
        reason = f"{name}: its certificate is not trusted ({shown.line(str(error))}); see [inputs] ca_bundle"
    else:
        reason = f"{name} cannot be read ({type(error).__name__})"
    blame = Blame.WORKER if is_own_fault_of_call(error) else Blame.TASK
    return StoreError(Fault.PERMANENT if certificate else Fault.PASSING, reason, blame=blame)
