"""Logs: one JSON object a line on standard error, ours through structlog, libraries' through the same formatter.

Neither a key nor a prompt is ever put into an event: what is logged is named field by field.
"""

import logging
import logging.config
import sys
from typing import Any

import msgspec
import structlog

_encoder = msgspec.json.Encoder(enc_hook=str)


def _to_json(event: Any, **_: Any) -> str:
    return _encoder.encode(event).decode()


def _to_json_bytes(event: Any, **_: Any) -> bytes:
    return _encoder.encode(event)


def configure(level: str) -> None:
    """Send everything at or above `level` (debug, info, warning, error) to standard error as JSON lines."""
    number = logging.getLevelName(level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_to_json_bytes)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        "foreign_pre_chain": [structlog.stdlib.add_logger_name, *shared],
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": formatter},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"handlers": ["stderr"], "level": number},
            "loggers": {
                "uvicorn.access": {"handlers": [], "propagate": False},
                # Expected refusals are the client's to read, not an operator's.
                "django.request": {"level": "ERROR"},
                "django.security.DisallowedHost": {"handlers": [], "propagate": False},
            },
        }
    )
