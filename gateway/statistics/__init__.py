"""What `/api/routing/stats` tells: how requests ended and how long they took, of all gateway processes together.

`tallies` counts on the event loop, a tally for each deployment and five minutes. `publisher` writes the tallies that
changed once a second, on the ledger's thread. `storage` keeps them as rows, and makes hours and days of old ones.
`selectors` merges the rows of all processes with what this one has not written yet. `sketch` is what makes percentiles
mergeable.

A kill -9 loses the last second: these are figures, the ledger is what keeps every request.
"""

from gateway.statistics.tallies import Recorder

requests = Recorder()
"""This process's."""
