"""The packages of `wit/` as they are shipped: none of them changes once it has a version.

`wit/versions.lock` holds a digest of what each version means, and says how a new one is added.
"""

import hashlib
import re
from pathlib import Path
from typing import Final

import pytest

from agent_runtime.component.shipped import FOLDER, load
from agent_runtime.component.wit import Package, canonical, parse

WIT: Final = Path(__file__).parents[3] / "wit"
LOCK: Final = WIT / "versions.lock"
VERSIONS: Final = sorted(path.name for path in WIT.iterdir() if path.is_dir())

FIRST: Final = """\
package agent-net:core@0.1.0;
interface bus {
  record envelope { topic: string, sender: string, payload: list<u8>, correlation-id: string }
  variant send-error { no-subscriber(string), payload-too-large(u32), backpressure }
  publish: func(msg: envelope) -> result<_, send-error>;
}
interface lifecycle {
  use bus.{envelope};
  init: func(agent-id: string, config: list<u8>) -> result<_, string>;
  handle: func(msg: envelope) -> result<list<envelope>, string>;
  shutdown: func();
}
world agent { import bus; export lifecycle; }
"""
"""Agents elsewhere were built against this text, so even its layout stays."""


def locked(lock: str) -> dict[str, str]:
    lines = [line for line in lock.splitlines() if not line.startswith("#")]
    return dict(line.split() for line in lines)


def digest_of(package: Package) -> str:
    return hashlib.sha256(canonical(package).encode()).hexdigest()


def package(version: str) -> Package:
    return parse((WIT / version / "agent-net.wit").read_text("utf-8"))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_never_changes(version: str) -> None:
    digest = digest_of(package(version))
    digests = locked(LOCK.read_text("utf-8"))
    assert version in digests, f"a new version needs this line in {LOCK.name}: {version} {digest}"
    assert digest == digests[version], (
        f"agent-net:core@{version} means something else than when it was locked. Components out"
        " there were built against it: undo the change, and put it into a new version"
    )


def test_a_version_never_goes_away() -> None:
    assert sorted(locked(LOCK.read_text("utf-8"))) == VERSIONS


def test_a_change_of_a_version_is_noticed() -> None:
    text = (WIT / "0.2.0" / "agent-net.wit").read_text("utf-8")
    changed = parse(text.replace("overloaded", "overburdened"))
    assert digest_of(changed) != digest_of(package("0.2.0"))


def test_a_change_of_comments_alone_is_none() -> None:
    text = (WIT / "0.2.0" / "agent-net.wit").read_text("utf-8")
    bare = re.sub(r"//.*", "", text)
    assert bare != text
    assert digest_of(parse(bare)) == digest_of(package("0.2.0"))


def test_the_first_version_is_as_it_was_published() -> None:
    assert (WIT / "0.1.0" / "agent-net.wit").read_text("utf-8") == FIRST


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder_holds_the_version_that_it_is_named_after(version: str) -> None:
    assert (package(version).name, package(version).version) == ("agent-net:core", version)


def test_every_version_is_shipped_and_offered_from_the_oldest_on() -> None:
    contract = load()
    assert FOLDER.resolve() == WIT
    assert contract.name == "agent-net:core"
    assert contract.offered == ("0.1.0", "0.2.0")
    assert sorted(contract.offered) == VERSIONS
    assert load() is contract
