"""An agent whose worker dies again and again is taken out; the others do not notice."""

import os
import signal

import pytest
from daemons import Installation, RunningDaemon

from orchestrator.supervision.restart import DEATHS_MAX

pytestmark = pytest.mark.model


def kill_until_quarantined(daemon: RunningDaemon, name: str) -> None:
    killed: set[int] = set()

    def quarantined() -> bool:
        agent = daemon.agent(name)
        if agent["pid"] is not None and agent["pid"] not in killed:
            os.kill(agent["pid"], signal.SIGKILL)
            killed.add(agent["pid"])
        return bool(agent["state"] == "quarantined")

    daemon.wait(quarantined, f"to take {name} out")
    assert len(killed) == DEATHS_MAX + 1


def test_an_agent_that_keeps_dying_waits_for_a_person(installation: Installation) -> None:
    with installation.running() as daemon:
        kill_until_quarantined(daemon, "uxclaw")

        # A person is asked, and monitoring is told.
        (request,) = daemon.ctl("attention", "list")["requests"]
        assert request["agent"] == "uxclaw"
        assert "killed by SIGKILL" in request["question"]
        assert not daemon.status()["healthy"]
        code, text = daemon.http("/healthz")
        assert code == 503 and "uxclaw" in text
        metrics = daemon.metrics()
        assert metrics.total("agentd_agents", state="quarantined") == 1
        assert metrics.total("agentd_worker_deaths_total", agent="uxclaw") == DEATHS_MAX + 1

        # Its messages wait, and the others go on.
        daemon.ask("Is this form easy to understand?", "waits", "--to", "uxclaw")
        trace = daemon.answered(
            "Is the load of this server too high?", "goes on", "--to", "opsclaw"
        )
        assert trace["conversation"]["reply"].strip()
        assert daemon.agent("uxclaw")["pending"] == 1
        restarts = {one["name"]: one["restarts"] for one in daemon.status()["agents"]}
        assert restarts == {
            "conductor": 0,
            "devclaw": 0,
            "opsclaw": 0,
            "secclaw": 0,
            "uxclaw": DEATHS_MAX,
        }

        # The answer lets it out, and it finds what waited.
        daemon.ctl("attention", "answer", str(request["id"]), "Yes, it was me.")
        daemon.wait_healthy()
        assert daemon.wait_answer("waits")["conversation"]["reply"].strip()
        assert daemon.http("/healthz") == (200, "healthy\n")
        assert daemon.status()["dead_letters"] == 0
