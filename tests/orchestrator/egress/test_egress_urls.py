"""Which URLs can be granted, and what lies below one."""

import pytest

from ipc_protocol.errors import Failure
from orchestrator.egress_urls import PATH_CHARACTERS_MAX, GrantedUrl, UrlError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://models.example/v1", "https://models.example:443/v1"),
        ("https://Models.Example/v1/", "https://models.example:443/v1"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost/", "http://localhost:80"),
        ("https://[2001:DB8::1]:8443/a/b.c", "https://[2001:db8::1]:8443/a/b.c"),
    ],
)
def test_a_plain_url_can_be_granted(text: str, url: str) -> None:
    assert str(GrantedUrl.parse(text)) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "models.example/v1",
        "ftp://models.example/v1",
        "HTTPS://models.example/v1",
        "https:///v1",
        "https://user@models.example/v1",
        "https://user:word@models.example/v1",
        "https://models.example/v1?a=b",
        "https://models.example/v1#part",
        "https://models.example//v1",
        "https://models.example/v1/../v2",
        "https://models.example/./v1",
        "https://models.example/.hidden",
        "https://models.example/%76%31",
        "https://models.example\\@other.example/v1",
        "https://models.example/v1\n",
        "https://models.example:0/v1",
        "https://models.example:65536/v1",
        "https://models.example:+443/v1",
        "https://models.example./v1",
        "https://models..example/v1",
        "https://models-.example/v1",
        f"https://{'m' * 64}.example/v1",
        "https://[::1/v1",
        "https://[:::]/v1",
        "https://[1.2]/v1",
        "https://möbel.example/v1",
        f"https://models.example/{'v' * 600}",
    ],
)
def test_anything_else_cannot(text: str) -> None:
    with pytest.raises(UrlError):
        GrantedUrl.parse(text)


@pytest.mark.parametrize("path", ["", ":0/v1"])
def test_a_fault_does_not_repeat_what_may_be_a_password(path: str) -> None:
    with pytest.raises(UrlError) as raised:
        GrantedUrl.parse(f"https://user:secret-word@models.example{path}")
    assert "secret-word" not in str(raised.value)


def test_a_path_is_appended() -> None:
    url = GrantedUrl.parse("https://models.example/v1")
    assert url.below("/chat/completions") == "https://models.example:443/v1/chat/completions"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "chat",
        "//other.example/v1",
        "/chat//completions",
        "/../admin",
        "/chat/..",
        "/./chat",
        "/chat/%2e%2e/admin",
        "/chat?key=1",
        "/chat#part",
        "/chat;a=b",
        "/chat\\..\\admin",
        "/chat completions",
        "/chat\r\nHost: other.example",
        "@other.example/",
        ":80@other.example/",
        "https://other.example/v1",
        f"/{'x' * PATH_CHARACTERS_MAX}",
    ],
)
def test_no_trick_leads_out_of_a_grant(path: str) -> None:
    with pytest.raises(Failure) as failure:
        GrantedUrl.parse("https://models.example/v1").below(path)
    assert failure.value.code == "egress.not-permitted"


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("https://models.example", True),
        ("http://models.example", False),
        ("http://localhost:8080", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("http://10.0.0.1", False),
    ],
)
def test_a_secret_is_kept_by_tls_or_within_the_machine(text: str, keeps: bool) -> None:
    assert GrantedUrl.parse(text).keeps_secrets is keeps
