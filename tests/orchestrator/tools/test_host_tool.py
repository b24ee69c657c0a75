"""`host.read`: the granted paths and nothing else, in few words."""

import os
from pathlib import Path

import pytest

from ipc_protocol.errors import Failure
from orchestrator.tools import limits
from orchestrator.tools.disk import Mount, Space, describe, measure, parse_mounts, report
from orchestrator.tools.host import read_host_file
from orchestrator.tools.summaries import summarise

MEMINFO = """MemTotal:       24684092 kB
MemFree:        23683396 kB
MemAvailable:   20872544 kB
SwapTotal:       2097152 kB
SwapFree:        1048576 kB
Dirty:               100 kB
"""

MOUNTINFO = """22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
28 27 254:0 /var/x /srv/bound rw - ext4 /dev/vda rw
29 27 8:1 / /data\\040disk rw,nosuid shared:7 - xfs /dev/sda1 rw
30 27 0:25 / /tmp rw - tmpfs tmpfs rw
31 27 0:40 / /mnt/share rw - nfs4 server:/export rw
32 27 7:0 / /snap/core ro - squashfs /dev/loop0 ro
33 27 0:44 / /tank rw - zfs tank rw
garbage
34 27 8:2 / /short - ext4
"""


def test_memory_is_told_in_one_line() -> None:
    assert summarise("/proc/meminfo", MEMINFO, 2) == (
        "Memory: 15% of 23.5 GiB used, 19.9 GiB available. Swap: 50% of 2.0 GiB used."
    )


def test_no_swap_and_much_unwritten_data_are_said() -> None:
    text = "MemTotal: 1000000 kB\nMemAvailable: 500000 kB\nDirty: 300000 kB\n"
    assert summarise("/proc/meminfo", text, 2) == (
        "Memory: 50% of 976 MiB used, 488 MiB available. No swap. "
        "292 MiB wait to be written to disk."
    )


@pytest.mark.parametrize(
    ("cores", "share", "verdict"),
    [(1, "149%", "overloaded"), (2, "74%", "busy"), (8, "19%", "fine")],
)
def test_load_is_told_in_relation_to_the_cores(cores: int, share: str, verdict: str) -> None:
    text = summarise("/proc/loadavg", "1.49 0.79 0.54 3/105 8201\n", cores)
    assert f"on {cores} cores: {share} now, {verdict}." in text
    assert "3 of 105 tasks run" in text


def test_uptime_is_told_in_days() -> None:
    assert summarise("/proc/uptime", "93784.5 1.0", 1) == "Up for 1 days, 2 hours, 3 minutes."


@pytest.mark.parametrize("path", ["/proc/meminfo", "/proc/loadavg", "/proc/uptime"])
@pytest.mark.parametrize("content", ["what is this", "1 2 3", "MemTotal: 5 kB"])
def test_a_file_of_another_form_is_shown_as_it_is(path: str, content: str) -> None:
    if (path, content) == ("/proc/uptime", "1 2 3"):
        return
    assert summarise(path, content, 1) == content


def test_a_long_file_is_shown_by_its_ends() -> None:
    content = "first line\n" + "middle\n" * 5000 + "last line"
    text = summarise("/var/log/syslog", content, 1)
    assert text.startswith("first line")
    assert text.endswith("last line")
    assert len(text) <= limits.HOST_OUTPUT_CHARACTERS_MAX


def test_an_empty_file_says_so() -> None:
    assert summarise("/etc/motd", " \n", 1) == "The file is empty."


# ---- The disk report -----------------------------------------------------------------------------


def test_each_real_file_system_is_reported_once_and_no_other() -> None:
    assert parse_mounts(MOUNTINFO) == [
        Mount("/", "254:0"),
        Mount("/data disk", "8:1"),
        Mount("/tank", "0:44"),
    ]


def test_the_fullest_disk_comes_first() -> None:
    spaces = [
        Space("/", 252 * 10**9, 80 * 10**9, 22),
        Space("/var", 2 * 10**12, 15 * 10**8, 97),
        Space("/boot", 500 * 10**6, 400 * 10**6, 20),
    ]
    assert describe(spaces) == (
        "/var 97% of 2.0 TB used, 1.5 GB free\n"
        "/ 22% of 252 GB used, 80 GB free\n"
        "/boot 20% of 500 MB used, 400 MB free"
    )


def test_a_host_with_many_disks_still_gets_a_short_report() -> None:
    spaces = [Space(f"/disk/{number}", 10**13, 10**9, 99) for number in range(100)]
    assert len(describe(spaces)) <= limits.HOST_OUTPUT_CHARACTERS_MAX


def test_a_path_that_cannot_be_printed_does_no_harm() -> None:
    text = describe([Space("/a\nb\udcff", 10**9, 10**8, 90)])
    assert text.startswith("/a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER} 90%")
    text.encode()


def test_a_host_without_disks_says_so() -> None:
    assert "No file system" in describe([])


def test_a_pseudo_file_system_has_no_size() -> None:
    assert measure("/proc") is None


def test_this_host_has_a_disk_report() -> None:
    assert "% of" in report()


# ---- Reading -------------------------------------------------------------------------------------


def test_a_file_of_proc_is_read_although_it_has_no_size() -> None:
    assert read_host_file("/proc/loadavg").startswith("Load: ")


def test_a_granted_path_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Failure, match="symbolic link"):
        read_host_file(str(tmp_path / "link"))


def test_a_fifo_does_not_block_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Failure, match="not a regular file"):
        read_host_file(str(tmp_path / "fifo"))


def test_a_missing_file_is_a_failure_that_says_so() -> None:
    with pytest.raises(Failure, match="No such file"):
        read_host_file("/nowhere")


@pytest.mark.parametrize(
    ("path", "content", "reading"),
    [
        (
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nmail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n",
            "1 of 2 accounts have a login shell: root. User id 0: root.",
        ),
        (
            "/etc/passwd",
            "".join(f"user{n}:x:{n + 1}:1::/:/bin/sh\n" for n in range(8)),
            "8 of 8 accounts have a login shell: user0, user1, user2, user3, user4, user5"
            " and 2 more. User id 0: none.",
        ),
        ("/etc/passwd", "no accounts", "no accounts"),
        (
            "/etc/group",
            "root:x:0:\nsudo:x:27:ann,bob\nmail:x:8:\n",
            "Members of the groups with power: root: nobody; sudo: ann,bob.",
        ),
        ("/etc/group", "mail:x:8:", "mail:x:8:"),
        (
            "/etc/ssh/sshd_config",
            "# PermitRootLogin yes\nPermitRootLogin no\nPermitRootLogin yes\nUsePAM\n",
            "Root may log in by ssh: no. Passwords are accepted: yes by default.",
        ),
    ],
)
def test_files_of_accounts_are_read_for_who_has_power(
    path: str, content: str, reading: str
) -> None:
    assert summarise(path, content, 1) == reading
