"""The embedding engine: the same line, vectors instead of text."""

from pathlib import Path

import numpy as np
import pytest
from engines import running_engine

from inference_client.engine.embedding import WORDS_CHARACTERS_MAX
from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart


def vectors(embedded) -> np.ndarray:
    return np.array([np.frombuffer(vector, "<f4") for vector in embedded.vectors])


def memory_kib_max(pid: int) -> int:
    """The most that the process has ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


async def test_similar_texts_have_similar_vectors():
    async with running_engine("embedding") as engine:
        info = await engine.client.start(EngineStart(name="words", path=""))
        assert (info.kind, info.architecture, info.dimensions) == ("embedding", "wordllama", 256)
        found = vectors(
            await engine.client.embed(["the disk is full", "no space on disk", "a fine poem"])
        )
        assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1], abs=1e-4)
        assert found[0] @ found[1] > found[0] @ found[2]


async def test_a_text_without_words_has_a_vector_of_zeros():
    async with running_engine("embedding") as engine:
        await engine.client.start(EngineStart(name="words", path=""))
        found = vectors(await engine.client.embed(["", "disk"]))
        assert not found[0].any()
        assert (await engine.client.embed([])).vectors == []
        assert (await engine.client.status()).model.name == "words"


async def test_tokens_are_counted_and_long_texts_take_so_much_memory_and_no_more():
    async with running_engine("embedding") as engine:
        await engine.client.start(EngineStart(name="words", path=""))
        assert (await engine.client.embed(["disk", "disk"])).tokens == 2
        before_kib = memory_kib_max(engine.process.pid)
        long = "disk " * 50_000
        for texts in ([long] + ["disk"] * 31, [long] * 15):
            embedded = await engine.client.embed(texts)
            found = vectors(embedded)
            assert found[0] @ found[1] > 0.9
            assert 0 < embedded.tokens <= len(texts) * WORDS_CHARACTERS_MAX
        assert memory_kib_max(engine.process.pid) - before_kib < 1024 * 1024
        assert (await engine.client.embed(["é" * WORDS_CHARACTERS_MAX])).tokens > 0


async def test_an_embedding_engine_without_a_model_says_so():
    async with running_engine("embedding") as engine:
        with pytest.raises(Failure, match="no model yet"):
            await engine.client.embed(["text"])


@pytest.mark.model
async def test_any_gguf_can_give_vectors(model_path):
    async with running_engine("embedding") as engine:
        start = EngineStart(name="gguf", path=str(model_path), context=64)
        info = await engine.client.start(start)
        texts = ["the disk is full", "the disk is full", "a poem " * 200, ""]
        embedded = await engine.client.embed(texts)
        assert 64 < embedded.tokens < 64 + 2 * 10, "what is cut off is counted"
        found = vectors(embedded)
        assert found.shape == (4, info.dimensions)
        assert np.linalg.norm(found, axis=1) == pytest.approx([1] * 4, abs=1e-4)
        assert found[0] @ found[1] == pytest.approx(1, abs=1e-3)
        assert found[0] @ found[2] < 0.999


async def test_every_request_is_a_step_and_none_is_left_at_the_end():
    async with running_engine("embedding") as engine:
        await engine.client.start(EngineStart(name="words", path=""))
        for asked in range(3):
            status = await engine.client.status()
            assert (status.steps, status.working) == (asked, False)
            await engine.client.embed(["disk"])
