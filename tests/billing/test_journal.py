"""The ledger's journal: what is written there is read again, to the last digit."""

import os
import stat
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.journal import Journal
from billing.rows import LedgerRow
from gateway.types import Attempt
from tests.support.ledger import make_row

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
money = st.none() | st.decimals(min_value=-(10**11), max_value=10**11, places=12)
counts = st.none() | st.integers(-(10**12), 10**12)
seconds = st.floats(0, 4e9)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
attempts = st.builds(
    Attempt, provider=texts, deployment=texts, outcome=texts, status=st.none() | st.integers(100, 599),
    started_ms=seconds, latency_ms=seconds, error=st.none() | texts,
)  # fmt: skip
rows = st.builds(
    make_row, kind=st.sampled_from(["hold", "settlement", "release", "adjustment"]), request_id=texts.filter(bool),
    created_at=seconds, user_id=st.none() | texts, requested_model=texts, held_usd=money, cost_usd=money,
    prompt_tokens=counts, latency_ms=st.none() | seconds, tags=st.lists(texts, max_size=3).map(tuple),
    attempts=st.lists(attempts, max_size=2).map(tuple), detail=st.dictionaries(texts, json_values, max_size=3),
)  # fmt: skip


def read_all(journal: Journal) -> list[LedgerRow]:
    return [row for _, path in Journal.left_by(journal.path.parent) for row in journal.read(path)]


@given(batches=st.lists(st.lists(rows, max_size=3), max_size=3))
def test_what_is_appended_is_read_again(tmp_path_factory, batches):
    journal = Journal(tmp_path_factory.mktemp("journal"), "gw_1")
    for batch in batches:
        journal.append(batch)
    assert read_all(journal) == [row for batch in batches for row in batch]


def test_money_keeps_every_digit(tmp_path):
    journal = Journal(tmp_path, "gw_1")
    cost = Decimal("123456789.123456789012")
    journal.append([make_row("settlement", cost_usd=cost)])
    (row,) = read_all(journal)
    assert row.cost_usd is not None
    assert row.cost_usd.as_tuple() == cost.as_tuple()


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    journal = Journal(tmp_path, "gw_1")
    first, second = make_row(), make_row()
    journal.append([first])
    journal.append([second])
    path = journal.path
    path.write_bytes(path.read_bytes()[:-30])
    assert journal.read(path) == [first]


def test_a_damaged_line_does_not_take_its_neighbours_along(tmp_path):
    journal = Journal(tmp_path, "gw_1")
    rows = [make_row() for _ in range(3)]
    journal.append(rows)
    path = journal.path
    one, two, three = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(one + two.replace(b'"', b"'") + three)
    assert journal.read(path) == [rows[0], rows[2]]


def test_a_journal_is_for_its_owner_alone(tmp_path):
    folder = tmp_path / "journal"
    journal = Journal(folder, "gw_1")
    journal.append([make_row(tags=("private",))])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    path = journal.path
    assert path.name == "gw_1.jsonl"


def test_it_is_on_disk_before_anybody_is_told(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(fsync(descriptor)))
    Journal(tmp_path, "gw_1").append([make_row(), make_row()])
    assert len(synced) == 1


def test_journals_of_earlier_processes_come_first(tmp_path):
    for process in ("gw_3", "gw_1", "gw_2"):
        Journal(tmp_path, process).append([make_row(process_id=process)])
    assert [row.process_id for row in read_all(Journal(tmp_path, "gw_3"))] == ["gw_1", "gw_2", "gw_3"]


def test_without_a_folder_there_is_nothing_to_read(tmp_path):
    assert Journal.left_by(tmp_path / "nowhere") == []
    assert Journal.read(tmp_path / "nowhere" / "gw_1.jsonl") == []


def test_a_rejected_row_is_kept_for_a_person_and_not_replayed(tmp_path):
    journal = Journal(tmp_path, "gw_1")
    journal.reject(make_row(request_id="req_bad"))
    assert Journal.left_by(tmp_path) == []
    assert "req_bad" in (tmp_path / "rejected.txt").read_text()


def test_a_full_disk_is_told(tmp_path):
    blocked = tmp_path / "journal"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(OSError):
        Journal(blocked, "gw_1").append([make_row()])
