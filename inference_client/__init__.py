"""What an inference request is, the client of an engine, the model registry, and the engine itself.

The engine is a program of its own (`python -m inference_client.engine`); nobody imports it. Other
packages import `inference_client.client` and `inference_client.models`.
"""
