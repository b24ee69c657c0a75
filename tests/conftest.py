"""What tests of several packages share: the real model, and daemons that run it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Installation, short_folder

from inference_client.models import Registry, default_cache


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF of SmolLM2, pulled through the user's cache."""
    registry = Registry(tmp_path_factory.mktemp("models"))
    return registry.pull("smollm2", cache=default_cache()).path


@pytest.fixture
def installation(model_path: Path) -> Iterator[Installation]:
    """A fresh installation with the five agents."""
    with short_folder() as folder:
        yield Installation.create(folder, model_path)
