"""A daemon with several models: what agents need is loaded, the rest when somebody asks."""

from pathlib import Path

import pytest
from daemons import Installation, short_folder

pytestmark = pytest.mark.model

REFUSAL = "all models together may take"


def test_what_no_agent_needs_is_not_loaded_and_nobody_misses_it(model_path: Path) -> None:
    small = {"file": str(model_path), "slots": 1, "context": 512}
    models = {"default": small, "pinned": {**small, "pin": True}, "spare": small}
    with short_folder() as folder:
        installation = Installation.bare(folder, model=models)
        installation.add_agent("gate", role="agent", identity="You are a guard.")
        with installation.running() as daemon:
            engines = {engine["name"]: engine for engine in daemon.status()["engines"]}
            states = {name: engine["state"] for name, engine in engines.items()}
            assert states == {
                "default": "ready",
                "pinned": "ready",
                "spare": "unloaded",
                "embed": "ready",
            }
            assert engines["spare"].get("pid") is None


def test_a_model_that_has_no_room_is_said_to_have_none(model_path: Path) -> None:
    models = {"default": {"file": str(model_path), "slots": 1, "context": 512}}
    with short_folder() as folder:
        installation = Installation.bare(folder, model=models, inference={"memory": "64MiB"})
        installation.add_agent("gate", role="agent", identity="You are a guard.")
        daemon = installation.start()
        try:
            daemon.wait(lambda: REFUSAL in daemon.run_ctl("status").output, "the model's refusal")
            daemon.stop()
        finally:
            if daemon.process.poll() is None:
                daemon.kill()
