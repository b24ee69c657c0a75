"""Egress against real servers on loopback: what goes out, what comes back, and how it fails."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import trustme
from aiohttp import web
from remote_servers import Answer, RemoteServer, remote_server, streamed

from ipc_protocol.egress import Dial, Fetch, Fetched, FetchedPiece
from ipc_protocol.errors import Failure
from orchestrator.egress import dialler
from orchestrator.egress.dialler import REQUEST_BYTES_MAX, Dialler, Limits

SECRET = "sk-secret-secret-42"


class Asked:
    """One fetch: what it brought."""

    def __init__(self, pieces: list[FetchedPiece], fetched: Fetched) -> None:
        self.head = pieces[0]
        self.body = b"".join(piece.data for piece in pieces[1:])
        self.fetched = fetched


class Egress:
    """A dialler with one grant."""

    def __init__(self, dialler: Dialler, server: RemoteServer) -> None:
        self.dialler = dialler
        self.server = server

    async def ask(self, path: str = "/chat", **changes: object) -> Asked:
        pieces: list[FetchedPiece] = []

        async def keep(piece: FetchedPiece) -> None:
            pieces.append(piece)

        asked = Fetch(**{"grant": "big", "path": path, **changes})  # type: ignore[arg-type]
        return Asked(pieces, await self.dialler.fetch(asked, keep))

    async def refused(self, code: str, reason: str | None = None, **changes: object) -> Failure:
        with pytest.raises(Failure) as failure:
            await self.ask(**changes)  # type: ignore[arg-type]
        assert failure.value.code == code, failure.value
        assert failure.value.problem.details.get("reason") == reason
        assert SECRET not in repr(failure.value.problem)
        return failure.value


@contextlib.asynccontextmanager
async def egress(
    answer: Answer, limits: Limits | None = None, authority: trustme.CA | None = None
) -> AsyncIterator[Egress]:
    async with (
        remote_server(answer, authority) as server,
        Dialler.opened(limits or Limits()) as dialler,
    ):
        dialler.grant({"big": Dial(url=server.url, secret=SECRET)})
        yield Egress(dialler, server)


async def well(request: web.Request) -> web.StreamResponse:
    return await streamed(request, b"data: one\n\n", b"data: two\n\n")


async def test_an_answer_comes_in_pieces_behind_its_status() -> None:
    async with egress(well) as out:
        asked = await out.ask(body=b"{}", headers={"Content-Type": "application/json"})
        assert (asked.head.status, asked.head.data) == (200, b"")
        assert asked.head.headers == {"content-type": "text/event-stream"}
        assert asked.body == b"data: one\n\ndata: two\n\n"
        assert asked.fetched.bytes_received == len(asked.body)


async def test_the_secret_is_put_in_and_nothing_of_this_machine_is_told() -> None:
    async with egress(well) as out:
        await out.ask(body=b"{}", headers={"Content-Type": "application/json"})
        (request,) = out.server.requests
        assert request.path == "/v1/chat"
        assert out.server.bodies == [b"{}"]
        assert dict(request.headers) == {
            "Host": out.server.url.removeprefix("http://").removesuffix("/v1"),
            "Authorization": f"Bearer {SECRET}",
            "Content-Type": "application/json",
            "Content-Length": "2",
            "User-Agent": "agentd",
            "Accept-Encoding": "identity",
            "Accept": "*/*",
        }


async def test_a_get_has_no_body() -> None:
    async with egress(well) as out:
        await out.ask("/models", method="GET")
        assert (out.server.requests[0].method, out.server.bodies) == ("GET", [b""])


async def test_only_what_was_granted_is_dialled() -> None:
    async with egress(well) as out:
        await out.refused("egress.not-permitted", grant="other")
        await out.refused("egress.not-permitted", path="/../admin")
        await out.refused("egress.not-permitted", headers={"Authorization": "Bearer mine"})
        await out.refused("request.invalid", body=bytes(REQUEST_BYTES_MAX + 1))
        assert out.server.requests == []


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/v1/other"})

    async with egress(elsewhere) as out:
        assert (await out.ask()).head.status == 307
        assert len(out.server.requests) == 1


async def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with egress(well) as out:
        assert (await out.ask()).head.status == 200


async def test_no_cookie_is_kept() -> None:
    async def tempting(request: web.Request) -> web.StreamResponse:
        response = web.Response()
        response.set_cookie("session", "1")
        return response

    async with egress(tempting) as out:
        await out.ask()
        await out.ask()
        assert all("Cookie" not in request.headers for request in out.server.requests)


async def test_an_error_is_an_answer_and_says_when_to_come_again() -> None:
    async def busy(_: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "7"}, text="slow down")

    async with egress(busy) as out:
        asked = await out.ask()
        assert (asked.head.status, asked.head.headers["retry-after"]) == (429, "7")
        assert asked.body == b"slow down"


async def test_a_secret_that_is_quoted_does_not_come_back() -> None:
    async def telltale(request: web.Request) -> web.StreamResponse:
        quoted = request.headers["Authorization"].encode()
        return await streamed(request, quoted[:15], quoted[15:], kind=f"text/{SECRET}")

    async with egress(telltale) as out:
        asked = await out.ask()
        assert asked.body == b"Bearer [redacted]"
        assert asked.head.headers == {"content-type": "text/[redacted]"}


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with egress(well) as out:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            out.dialler.grant({"big": Dial(url=f"http://127.0.0.1:{port}/v1", secret=SECRET)})
            await out.refused("egress.failed", "unreachable")
        out.dialler.grant({"big": Dial(url="https://none.invalid/v1", secret=SECRET)})
        await out.refused("egress.failed", "unreachable")


async def test_a_server_that_does_not_accept_is_unreachable() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        host, port = deaf.getsockname()
        with socket.create_connection((host, port)):  # its queue is full now
            async with egress(well, Limits(connect_seconds=0.2)) as out:
                out.dialler.grant({"big": Dial(url=f"http://127.0.0.1:{port}")})
                await out.refused("egress.failed", "unreachable")


async def test_a_server_that_breaks_off_is_broken() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with egress(half) as out:
        await out.refused("egress.failed", "broken")


async def test_what_is_no_http_is_broken() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, egress(well) as out:
        port = server.sockets[0].getsockname()[1]
        out.dialler.grant({"big": Dial(url=f"http://127.0.0.1:{port}")})
        await out.refused("egress.failed", "broken")


async def test_every_silence_has_its_end() -> None:
    forever = asyncio.Event()

    async def silent(_: web.Request) -> web.StreamResponse:
        await forever.wait()
        raise AssertionError

    async def begun(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await forever.wait()
        raise AssertionError

    async with egress(silent, Limits(first_byte_seconds=0.05)) as out:
        assert "begun" in str(await out.refused("egress.failed", "timeout"))
    async with egress(begun, Limits(idle_seconds=0.05)) as out:
        assert "nothing more" in str(await out.refused("egress.failed", "timeout"))
    async with egress(begun) as out:
        assert "in full" in str(await out.refused("egress.failed", "timeout", timeout_us=50_000))
    async with egress(begun, Limits(total_seconds_max=0.05)) as out:
        assert "in full" in str(await out.refused("egress.failed", "timeout"))


async def test_an_endless_answer_is_ended() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        return await streamed(request, *(bytes(1000) for _ in range(100)))

    async with egress(endless, Limits(answer_bytes_max=5000)) as out:
        await out.refused("egress.failed", "too-long")


async def test_an_answer_over_its_rate_comes_whole() -> None:
    async def fast(request: web.Request) -> web.StreamResponse:
        return await streamed(request, bytes(3000), bytes(3000))

    limits = Limits(bytes_per_second=60_000, burst_bytes=1000)
    async with egress(fast, limits) as out:
        assert (await out.ask()).fetched.bytes_received == 6000


async def test_whoever_cancels_closes_the_connection() -> None:
    begun = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with egress(endless) as out:
        asked = asyncio.ensure_future(out.ask())
        await begun.wait()
        asked.cancel()
        await asyncio.wait([asked])
        async with asyncio.timeout(10):
            await out.server.gone.wait()


async def test_no_more_is_under_way_than_there_are_descriptors_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialler, "FETCHES_MAX", 1)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        return await well(request)

    async with egress(slow) as out:
        asked = asyncio.ensure_future(out.ask())
        await begun.wait()
        await out.refused("egress.failed", "busy")
        go_on.set()
        assert (await asked).head.status == 200


async def test_what_was_held_back_comes_at_the_end() -> None:
    async def almost(request: web.Request) -> web.StreamResponse:
        return await streamed(request, b"it begins with sk-secret-")

    async with egress(almost) as out:
        assert (await out.ask()).body == b"it begins with sk-secret-"


# ---- TLS -----------------------------------------------------------------------------------------


async def test_a_certificate_is_verified(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    for trusted, reason in ((authority, None), (other, "tls")):
        file = tmp_path_factory.mktemp("ca") / "ca.pem"
        trusted.cert_pem.write_to_path(str(file))
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        async with egress(well, authority=authority) as out:
            if reason is None:
                assert (await out.ask()).head.status == 200
            else:
                failure = await out.refused("egress.failed", reason)
                assert "proved" in str(failure)
                assert out.server.requests == []


async def test_a_server_without_tls_is_not_told_the_key() -> None:
    async with egress(well) as out:
        url = out.server.url.replace("http://", "https://")
        out.dialler.grant({"big": Dial(url=url, secret=SECRET)})
        await out.refused("egress.failed", "tls")


@pytest.mark.parametrize("url", ["http://models.example/v1", "https://user@models.example/v1"])
async def test_a_key_is_not_sent_for_everybody_to_read(url: str) -> None:
    async with Dialler.opened() as dialler:
        with pytest.raises(Failure) as failure:
            dialler.grant({"big": Dial(url=url, secret=SECRET)})
        assert failure.value.code == "request.invalid"
        assert SECRET not in repr(failure.value.problem)


async def test_what_was_granted_does_not_show_its_secret() -> None:
    async with Dialler.opened() as opened:
        opened.grant({"big": Dial(url="https://models.example/v1", secret=SECRET)})
        shown = repr(vars(opened)["_grants"])
        assert "models.example" in shown
        assert SECRET not in shown


def test_a_dial_does_not_show_its_secret() -> None:
    assert SECRET not in repr(Dial(url="https://models.example", secret=SECRET))
