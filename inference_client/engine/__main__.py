"""Runs the engine; see `main`."""

from inference_client.engine.main import main

main()
