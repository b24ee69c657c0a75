"""An agent that knows nothing but the published WIT text runs with one TOML file and no change."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import tomli_w
from component_daemons import component_daemon, send, wait_done
from daemons import short_folder

ROOT: Final = Path(__file__).parents[2]

SOURCE: Final = """
from wit_world import exports
from wit_world.imports import bus
from wit_world.imports.bus import Envelope


class Lifecycle(exports.Lifecycle):
    def init(self, agent_id: str, config: bytes) -> None:
        pass

    def handle(self, msg: Envelope) -> list[Envelope]:
        shouted = Envelope("echo.out", "somebody else", msg.payload.upper(), msg.correlation_id)
        bus.publish(shouted)
        return [shouted]

    def shutdown(self) -> None:
        pass
"""


def test_a_component_built_against_the_text_alone_runs(tmp_path: Path) -> None:
    wit = tmp_path / "wit"
    wit.mkdir()
    shutil.copy(ROOT / "wit" / "0.1.0" / "agent-net.wit", wit)
    (tmp_path / "app.py").write_text(SOURCE)
    tool = Path(sys.executable).with_name("componentize-py")
    command = [str(tool), "-q", "-d", "wit", "-w", "agent", "componentize", "app"]
    subprocess.run([*command, "-o", "shouter.wasm"], cwd=tmp_path, check=True, timeout=120)
    with short_folder() as folder, component_daemon(folder, "120s") as daemon:
        file = tmp_path / "shouter.toml"
        keys = {"component": "shouter.wasm", "consumes": ["shouter.in"], "publishes": ["echo.out"]}
        file.write_text(tomli_w.dumps({"agent": {"shouter": keys}}))
        done = daemon.run_ctl("agents", "add", str(file), seconds=180)
        assert done.status == 0, done.errors
        correlation = send(daemon, "shouter.in", "hello")
        wait_done(daemon, correlation, "shouter")
        sent = daemon.rows(
            "SELECT sender, CAST(payload AS TEXT) FROM message WHERE topic = 'echo.out'"
        )
        assert sent == [("shouter", "HELLO"), ("shouter", "HELLO")]
