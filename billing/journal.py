"""Ledger rows on disk while the database is out of reach: written and synced before an answer goes out."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from billing.rows import LedgerRow

log = structlog.get_logger()

_encoder = msgspec.json.Encoder(enc_hook=str)
_decoder = msgspec.json.Decoder(LedgerRow)


class Journal:
    """A file of JSON lines, one row each. Rows are idempotent in the database, so a replay may repeat."""

    def __init__(self, folder: Path, process_id: str) -> None:
        self._folder = folder
        self._path = folder / f"{process_id}.jsonl"

    def append(self, rows: Sequence[LedgerRow]) -> None:
        """Keep `rows` until `take`. Raises `OSError` where the disk does not take them."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self._path, "ab") as file:
            file.writelines(_encoder.encode(row) + b"\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def reject(self, row: LedgerRow) -> None:
        """Keep a row that the database refuses, for a person to look at."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self._folder / "rejected.txt", "ab") as file:
            file.write(_encoder.encode(row) + b"\n")

    @property
    def path(self) -> Path:
        return self._path

    @staticmethod
    def left_by(folder: Path) -> list[tuple[str, Path]]:
        """(process id, journal) of every process that left one, oldest first."""
        return [(path.stem, path) for path in sorted(folder.glob("*.jsonl"))]

    @staticmethod
    def read(path: Path) -> list[LedgerRow]:
        """The rows of a journal; none where there is no file.

        A last line cut short by a crash was never promised to anyone and is left out.
        """
        rows: list[LedgerRow] = []
        if not path.exists():
            return rows
        for line in path.read_bytes().splitlines():
            try:
                rows.append(_decoder.decode(line))
            except msgspec.DecodeError:
                log.error("journal_line_unreadable", journal=path.name)
        return rows
