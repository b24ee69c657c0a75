"""Logging: text for a terminal, JSON for the journal. Everything goes to standard error.

What a line quotes of workers, files and peers can draw nothing and can begin no line: whoever reads
the log must be able to tell who says what.
"""

import logging
import sys

import structlog

from orchestrator.config.types import LogFormat, LogLevel
from orchestrator.printable import LINE_BREAKS, printable


def configure_logging(form: LogFormat, level: LogLevel) -> None:
    """Format every line of the standard library's loggers. `auto` is text on a terminal."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if text
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=not text),
        _quote_safely,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _quote_safely(
    _: object, __: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Further lines of a message are indented, so that none looks like one of the log's own."""
    said = printable(str(event["event"]), keep=LINE_BREAKS)
    event["event"] = said.replace("\n", "\n    ")
    return event
