"""Dials out: one HTTP client for all grants, with a bound on everything that a server decides.

No proxy and no password file is taken from the environment, no cookie is kept, no redirect is
followed, nothing is decompressed. A certificate is verified whenever there is TLS, against the
store of the system, or what `SSL_CERT_FILE` names instead.

Names are resolved here, by the system. An address within this network or this machine is not
refused, since nobody but the operator can name one: what is dialled was configured, word for word,
for a model.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Final, NamedTuple

import aiohttp
import msgspec
from yarl import URL

from ipc_protocol.egress import Dial, FailedBecause, Fetch, Fetched, FetchedPiece
from ipc_protocol.errors import Failure
from orchestrator.egress import headers
from orchestrator.egress.rate import ByteRate
from orchestrator.egress.redaction import Redactor
from orchestrator.egress_urls import GrantedUrl, UrlError

FETCHES_MAX: Final = 512
"""At once. Each is a socket, of the 1,024 descriptors that a program has by default."""

PIECE_BYTES_MAX: Final = 64 * 1024
"""One item. A model's token comes in some 250 bytes; a whole item fits into a frame many times."""

REQUEST_BYTES_MAX: Final = 2 * 1024 * 1024
"""Half a frame: 500,000 tokens of prompt."""

HEADERS_MAX: Final = 128
HEADER_BYTES_MAX: Final = 8 * 1024
"""What servers and proxies in front of them allow themselves by default."""


class Limits(msgspec.Struct, frozen=True):
    """What a server may take: bytes, and seconds unless the name ends in another unit."""

    connect_seconds: float = 15.0
    """Name, connection and TLS: three round trips, and a packet lost twice in each."""
    first_byte_seconds: float = 300.0
    """From the connection to the status: a server with a queue answers when the prompt's turn came
    and it was read, which takes minutes for a long one."""
    idle_seconds: float = 120.0
    """Between two pieces: as long as an engine of our own may be silent before it is hung."""
    total_seconds_max: float = 3600.0
    """Whatever the caller asks for: 100,000 tokens at 30 a second."""
    answer_bytes_max: int = 64 * 1024 * 1024
    """100,000 tokens with 600 bytes around each."""
    bytes_per_second: int = 4 * 1024 * 1024
    burst_bytes: int = 4 * 1024 * 1024
    """16,000 tokens a second: no server streams so fast, and what does so holds nobody else up."""


LIMITS: Final = Limits()


class _Grant(NamedTuple):
    url: GrantedUrl
    authorization: dict[str, str]
    secret: bytes

    def __repr__(self) -> str:
        return f"_Grant(url={str(self.url)!r})"  # whoever logs it must not log the secret


class Dialler:
    """What may be dialled, and the client that does it. `opened` makes one."""

    def __init__(self, session: aiohttp.ClientSession, limits: Limits) -> None:
        self._session = session
        self._limits = limits
        self._grants: dict[str, _Grant] = {}
        self._under_way = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, limits: Limits = LIMITS) -> AsyncIterator["Dialler"]:
        """Leaving the block closes every connection."""
        connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context())
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "agentd", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(),  # none of its own: `fetch` has them all
            auto_decompress=False,
            trust_env=False,
            read_bufsize=PIECE_BYTES_MAX,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
        ) as session:
            yield cls(session, limits)

    def grant(self, grants: Mapping[str, Dial]) -> None:
        """This and nothing else may be dialled. Raises `request.invalid`."""
        self._grants = {name: _granted(name, dial) for name, dial in grants.items()}

    async def fetch(self, asked: Fetch, send: Callable[[FetchedPiece], Awaitable[None]]) -> Fetched:
        """Ask, and `send` the answer as it comes. Being cancelled closes the connection.

        Raises `egress.not-permitted`, and `egress.failed` with its `reason`.
        """
        grant = self._grants.get(asked.grant)
        if grant is None:
            raise Failure(
                "egress.not-permitted",
                f"There is no grant {asked.grant[:64]!r}.",
                "Configure a model with a `url`.",
            )
        url = grant.url.below(asked.path)
        given = {**headers.outgoing(asked.headers), **grant.authorization}
        if len(asked.body) > REQUEST_BYTES_MAX:
            raise Failure(
                "request.invalid",
                f"A request of {len(asked.body)} bytes is over the {REQUEST_BYTES_MAX} allowed.",
                "Send a shorter prompt.",
            )
        if self._under_way >= FETCHES_MAX:
            raise _failed("busy", f"{FETCHES_MAX} requests to remote servers are under way.")
        self._under_way += 1
        try:
            return await self._fetch(asked, url, given, Redactor(grant.secret), send)
        finally:
            self._under_way -= 1

    async def _fetch(
        self,
        asked: Fetch,
        url: str,
        given: Mapping[str, str],
        redactor: Redactor,
        send: Callable[[FetchedPiece], Awaitable[None]],
    ) -> Fetched:
        total_seconds = min(asked.timeout_us / 1e6, self._limits.total_seconds_max)
        try:
            async with asyncio.timeout(total_seconds):
                with _named(url):
                    response = await self._answered(asked, url, given)
                    try:
                        await send(_head(response, redactor))
                        return await self._pass_on(response, redactor, send)
                    finally:
                        # The connection of one that has come whole is free by now, and stays open.
                        response.close()
        except TimeoutError as error:
            raise _failed(
                "timeout", f"{url} has not answered in full within {total_seconds:g} s."
            ) from error

    async def _answered(
        self, asked: Fetch, url: str, given: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """The answer as far as its headers."""
        limits = self._limits
        async with _within(limits.first_byte_seconds, f"{url} has not begun to answer"):
            return await self._session.request(
                asked.method,
                URL(url, encoded=True),  # as it was granted, letter for letter
                data=asked.body if asked.method == "POST" else None,
                headers=given,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    connect=limits.connect_seconds, sock_connect=limits.connect_seconds
                ),
            )

    async def _pass_on(
        self,
        response: aiohttp.ClientResponse,
        redactor: Redactor,
        send: Callable[[FetchedPiece], Awaitable[None]],
    ) -> Fetched:
        limits, received = self._limits, 0
        rate = ByteRate(
            per_second=limits.bytes_per_second, burst=limits.burst_bytes, now_us=_now_us()
        )
        while True:
            async with _within(limits.idle_seconds, f"{response.url} has said nothing more"):
                data = await response.content.read(PIECE_BYTES_MAX)
            if not data:
                break
            received += len(data)
            if received > limits.answer_bytes_max:
                raise _failed(
                    "too-long",
                    f"{response.url} answered more than {limits.answer_bytes_max} bytes.",
                )
            if piece := redactor.feed(data):
                await send(FetchedPiece(data=piece))
            if wait_us := rate.take(len(data), _now_us()):
                await asyncio.sleep(wait_us / 1e6)
        if rest := redactor.finish():
            await send(FetchedPiece(data=rest))
        return Fetched(bytes_received=received)


def _granted(name: str, dial: Dial) -> _Grant:
    try:
        url = GrantedUrl.parse(dial.url)
    except UrlError as error:
        raise Failure(
            "request.invalid", f"The URL of {name} cannot be granted: {error}."
        ) from error
    if dial.secret and not url.keeps_secrets:
        raise Failure(
            "request.invalid",
            f"The key of {name} would travel to {url} for everybody on the way to read.",
            "Use https, or no key.",
        )
    authorization = {"authorization": f"Bearer {dial.secret}"} if dial.secret else {}
    return _Grant(url, authorization, dial.secret.encode())


def _head(response: aiohttp.ClientResponse, redactor: Redactor) -> FetchedPiece:
    told = headers.incoming(response.headers.items())
    return FetchedPiece(
        status=response.status,
        headers={name: redactor.whole(value) for name, value in told.items()},
    )


@contextlib.asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    """Raises `egress.failed` when it takes longer."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():  # the client's own, of the connection
            raise
        raise _failed("timeout", f"{what} within {seconds:g} s.") from error


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    """What the client raises, as `egress.failed` with its reason."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        fault = error.certificate_error
        said = getattr(fault, "verify_message", "") or type(fault).__name__
        raise _failed("tls", f"{url} has not proved who it is: {said}.") from error
    except (aiohttp.ClientConnectorSSLError, aiohttp.ServerFingerprintMismatch) as error:
        raise _failed("tls", f"{url} and this machine agree on no TLS.") from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        said = getattr(error, "strerror", None) or "no answer in time"
        raise _failed("unreachable", f"{url} cannot be reached: {said}.") from error
    except (aiohttp.ClientError, OSError) as error:
        raise _failed("broken", f"{url} broke off: {type(error).__name__}.") from error


_CURES: Final[dict[FailedBecause, str]] = {
    "unreachable": "See whether the server runs, and whether `url` names it.",
    "tls": "Correct `url`, or add the server's authority to those that this machine trusts.",
    "timeout": "Ask again later, or for less.",
    "broken": "Ask again; the server's log may say why.",
    "too-long": "Ask for less.",
    "busy": "Ask again later.",
}


def _failed(reason: FailedBecause, sentence: str) -> Failure:
    return Failure("egress.failed", sentence, _CURES[reason], reason=reason)


def _now_us() -> int:
    return time.monotonic_ns() // 1000
