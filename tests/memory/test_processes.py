"""Two gateway processes that remember turns of one session at once."""

import os
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from django.db import connection

from memory.models import Session, Turn

_TURNS = 20
_PROCESS = f"""
import sys, django
django.setup()
from memory.recall import _store
print("ready", flush=True)
sys.stdin.readline()
for n in range({_TURNS}):
    name = f"{{sys.argv[1]}} {{n}}"
    _store("user:alice", "s", name, "to " + name, False)
"""


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("connection.vendor != 'sqlite'", reason="makes a SQLite file for the processes")
def test_one_session_is_made_and_every_question_is_followed_by_its_answer(tmp_path):
    database = tmp_path / "memory.sqlite3"
    with connection.schema_editor(collect_sql=True) as editor:
        editor.create_model(Session)
        editor.create_model(Turn)
    with sqlite3.connect(database) as file:
        # As migrations leave it: two connections cannot both switch a new file over.
        file.execute("PRAGMA journal_mode=WAL")
        file.executescript("\n".join(editor.collected_sql))
    file.close()
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "ailb_project.settings",
        "DATABASE_URL": f"sqlite:///{database}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, name],
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n", "ready\n"]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    file = sqlite3.connect(database)
    sessions = file.execute("SELECT owner, session_id FROM memory_session").fetchall()
    contents = [content for (content,) in file.execute("SELECT content FROM memory_turn ORDER BY id")]
    file.close()
    assert sessions == [("user:alice", "s")]
    assert len(contents) == 2 * 2 * _TURNS
    assert all(answer == f"to {question}" for question, answer in list(pairwise(contents))[::2])
