"""Writing what this process counted, so that every process can tell it: once a second where something changed."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from time import time

import structlog
from django.db import Error, connection

from billing.ledger import LedgerWriter
from gateway import metrics
from gateway.statistics import requests, storage
from gateway.statistics.tallies import Key, Load, Tally

log = structlog.get_logger()

_SECONDS = 1.0


class Publisher:
    """Belongs to one data plane, and ends before its ledger's writer: it writes on that one's thread, which has a
    connection already and would have to wait for another writer of SQLite. What could not be written is kept and
    written later. `in_flight` is the routing's own count, `cut_off` the seconds that the database has been out of reach
    for.
    """

    def __init__(
        self, process_id: str, writer: LedgerWriter, in_flight: dict[str, int], cut_off: Callable[[], float]
    ) -> None:
        self._process_id = process_id
        self._writer = writer
        self._cut_off = cut_off
        self._told = Load()
        self._writing = self._failing = False
        requests.begin(process_id, in_flight)
        self._tick()

    def close(self) -> None:
        """Hand over the rest."""
        self._timer.cancel()
        if not self._cut_off():
            self._writer.run_in_order(partial(self._write, requests.changed(), Load()))
        requests.begin("")

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._tick)
        requests.roll(time())
        requests.circuits = {name: int(state) for name, state in metrics.circuits().items() if state}
        changed, load = requests.changed(), requests.load
        if (changed or load != self._told) and not self._writing and not self._cut_off():
            self._writing = True
            self._writer.run_in_order(partial(self._write, changed, load))

    def _write(self, changed: Mapping[Key, Tally], load: Load) -> None:
        """On the ledger's thread."""
        # The ages first: what is counted while the rows are made may be in them or not, and goes with the next ones.
        ages = {key: tally.age for key, tally in changed.items()}
        try:
            storage.write(self._process_id, changed, load)
        except Error as error:
            self._note_failure(error)
        else:
            for key, tally in changed.items():
                tally.written = ages[key]
            self._told, self._failing = load, False
        finally:
            self._writing = False

    def _note_failure(self, error: Error) -> None:
        connection.close()  # it may be dead; the ledger opens another
        if not self._failing:
            log.error("statistics_not_written", error=type(error).__name__)
        self._failing = True
