"""Where the gateway may listen, and what happens when it cannot."""

import socket
from pathlib import Path

import pytest

from orchestrator.gateway.address import (
    AddressError,
    InternetAddress,
    UnixAddress,
    parse_address,
)
from orchestrator.gateway.listener import listening
from orchestrator.sockets import ListenError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9464", InternetAddress("127.0.0.1", 9464)),
        ("127.9.9.9:0", InternetAddress("127.9.9.9", 0)),
        ("[::1]:9464", InternetAddress("::1", 9464)),
        ("unix:/run/agentd/http", UnixAddress("/run/agentd/http")),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, address: object) -> None:
    assert parse_address(text, beyond_loopback=False) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "9464", ":9464", "localhost:9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x",
        "127.0.0.1:70000", "127.0.0.1:²", "[::1", "unix:", "unix:relative", "unix:/" + "x" * 108,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text, beyond_loopback=True)


@pytest.mark.parametrize("text", ["0.0.0.0:9464", "192.168.1.2:80", "[::]:80", "[2001:db8::1]:80"])
def test_an_address_that_others_reach_needs_to_be_allowed(text: str) -> None:
    with pytest.raises(AddressError, match="reached by others"):
        parse_address(text, beyond_loopback=False)
    assert str(parse_address(text, beyond_loopback=True)) == text


def test_an_address_in_use_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = InternetAddress("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ListenError, match="is in use"), listening(address):
            pass


def test_an_address_of_another_host_is_an_error() -> None:
    with pytest.raises(ListenError, match="Cannot listen"):  # noqa: SIM117
        with listening(InternetAddress("192.0.2.1", 9464)):
            pass


def test_a_unix_socket_is_private_and_goes_with_its_gateway(tmp_path: Path) -> None:
    path = tmp_path / "http"
    with listening(UnixAddress(str(path))):
        assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()


def test_a_socket_that_a_killed_gateway_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(UnixAddress(str(path))):
        assert path.is_socket()


def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "http"))
    with listening(address):
        with pytest.raises(ListenError, match="in use"), listening(address):
            pass
        assert Path(address.path).is_socket()


def test_a_file_in_the_way_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "http"
    path.write_text("important")
    with pytest.raises(ListenError), listening(UnixAddress(str(path))):
        pass
    assert path.read_text() == "important"


def test_a_socket_that_another_gateway_has_taken_over_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "http"
    with listening(UnixAddress(str(path))):
        path.rename(tmp_path / "old")
        path.write_text("the successor's")
    assert path.exists()


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ListenError, match="No such file"),
        listening(UnixAddress(str(tmp_path / "no" / "http"))),
    ):
        pass
