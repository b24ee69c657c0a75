"""An embedding engine whose vectors are simple, and that some texts do harm to.

`python embedding_program.py FD DIMENSIONS`. Each character is a token.
The rest is the engine as it is: its program, its line, its thread. What a text does:

- `die`: the process ends at once, as llama.cpp does on an internal error.
- `stuck`: the thread does not come back from it for two seconds.
- `break once PATH`: the line is broken by bytes that are no frame, unless PATH exists.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from inference_client.engine import embedding, main
from ipc_protocol.inference import EngineStart, ModelInfo


def load(fd: int, dimensions: int, start: EngineStart) -> embedding.Embedder:
    def vector(text: str) -> embedding.Vectors:
        if text == "die":
            os._exit(3)
        if text == "stuck":
            time.sleep(2)
        if text.startswith("break once "):
            path = Path(text.removeprefix("break once "))
            if not path.exists():
                path.touch()
                os.write(fd, b"this is no frame" * 4)
                time.sleep(0.2)
        made = np.zeros(dimensions, np.float32)
        made[sum(text.encode()) % dimensions] = 1
        return made

    def vectors(texts: Sequence[str]) -> tuple[embedding.Vectors, int]:
        return np.stack([vector(text) for text in texts]), sum(map(len, texts))

    info = ModelInfo(name=start.name, kind="embedding", architecture="test", dimensions=dimensions)
    return embedding.Embedder(info, vectors)


if __name__ == "__main__":
    import socket

    fd, dimensions = int(sys.argv[1]), int(sys.argv[2])
    embedding.load = lambda start: load(fd, dimensions, start)
    with socket.socket(fileno=fd) as line:
        sys.exit(0 if uvloop.run(main.serve(line, "embedding")) else 1)
