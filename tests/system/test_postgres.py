"""The core of the path on PostgreSQL, as an operator would run it."""

import signal

import httpx2
import psycopg
import pytest

from tests.support.postgres import scratch_database
from tests.support.serving import ADMIN_KEY, SECRETS, open_requests
from tests.support.upstream import USAGE, delta, refuses, says, sends
from tests.support.waiting import eventually
from tests.system.conftest import chat, openai_settings

pytestmark = pytest.mark.postgres


@pytest.fixture
def database(postgres):
    return postgres


@pytest.fixture
def serving(database, make_gateway, upstream):
    gateway = make_gateway(empty=True, DATABASE_URL=database, **SECRETS, **openai_settings(upstream)).start()
    yield gateway
    gateway.end()


def test_an_empty_database_is_enough(postgres_url, make_gateway):
    with scratch_database(postgres_url) as url:
        gateway = make_gateway(empty=True, DATABASE_URL=url, **SECRETS).start()
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        answer = httpx2.post(
            f"{gateway.url}/v1/chat/completions", json=chat(model="ailb-demo"), headers=headers, trust_env=False
        )
        assert answer.status_code == 200
        assert gateway.stop() == 0
        # Every host must have the same secrets: none was made here.
        assert {path.name for path in gateway.folder.iterdir()} <= {"run", "first-run.txt", "journal", "grpc-token"}


@pytest.fixture
def client(serving):
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with httpx2.Client(base_url=serving.url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def ledger(database):
    """A request's entries, by kind, once it is closed."""

    def entries(request_id):
        def closed():
            with psycopg.connect(database, row_factory=psycopg.rows.dict_row) as connection:
                rows = connection.execute(
                    "SELECT * FROM billing_ledgerentry WHERE request_id = %s ORDER BY id", [request_id]
                ).fetchall()
            return rows if len(rows) > 1 else None

        return {row["kind"]: row for row in eventually(closed)}

    return entries


def test_answers_streams_errors_and_their_rows(client, upstream, ledger):
    plain = client.post("/v1/chat/completions", json=chat(tags=["ü", "x"], user="u"), headers={"x-request-id": "mine"})
    assert plain.status_code == 200
    rows = ledger(plain.headers["x-request-id"])
    assert set(rows) == {"hold", "settlement"}
    # gpt-4o-mini: 0.15 dollars a million tokens in, 0.60 out; numeric(24, 12) to the last digit.
    assert str(rows["settlement"]["cost_usd"]) == "0.000004050000"
    assert (rows["settlement"]["prompt_tokens"], rows["settlement"]["tags"]) == (USAGE["prompt_tokens"], ["ü", "x"])
    assert rows["hold"]["client_request_id"] == "mine"
    assert rows["settlement"]["attempts"][0]["outcome"] == "ok"

    stream = client.post("/v1/chat/completions", json=chat(stream=True))
    assert stream.text.endswith("data: [DONE]\n\n")
    assert str(ledger(stream.headers["x-request-id"])["settlement"]["cost_usd"]) == "0.000004050000"

    upstream.will(refuses(500), refuses(500))  # once more: AILB_RETRIES
    failed = client.post("/v1/chat/completions", json=chat())
    assert failed.status_code == 502
    assert ledger(failed.headers["x-request-id"])["release"]["cost_usd"] == 0

    upstream.will(sends(delta("Half"), 0.05, end="cut"))
    cut = client.post("/v1/chat/completions", json=chat(stream=True))
    assert ledger(cut.headers["x-request-id"])["settlement"]["estimated"] is True


@pytest.mark.parametrize(
    "odd",
    [{"session_id": "s\x00"}, {"tags": ["t\x00"]}, {"user": "u\x00"}, {"session_id": "\u202e☃"}, {"tags": ["☃"]}],
    ids=str,
)
def test_no_character_keeps_an_answer_off_the_ledger(serving, client, ledger, odd):
    """PostgreSQL takes no NUL: a request that holds one is refused, or written down without it, never just served."""
    answer = client.post("/v1/chat/completions", json=chat(**odd))
    if answer.status_code == 200:
        assert set(ledger(answer.headers["x-request-id"])) == {"hold", "settlement"}
    else:
        assert answer.status_code == 400
    assert not (serving.folder / "journal" / "rejected.txt").exists()


@pytest.mark.parametrize("odd", [{"model": "m\x00"}, {"service_tier": "t\x00"}, {"finish": "stop\x00"}], ids=str)
def test_nor_one_in_the_upstreams_answer(serving, client, upstream, ledger, odd):
    upstream.will(says(**odd))
    answer = client.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 200
    assert set(ledger(answer.headers["x-request-id"])) == {"hold", "settlement"}


def test_keys_budgets_and_their_refusals(serving, client):
    secret = serving.make_key("--user", "alice", "--team", "red", "--monthly-dollars", "0.000001")

    def ask():
        return client.post(
            "/v1/chat/completions", json=chat(max_tokens=100), headers={"authorization": f"Bearer {secret}"}
        )

    # Made by another process: known within a second.
    eventually(lambda: ask().status_code != 401, 2)
    assert ask().status_code == 402
    assert client.post("/v1/chat/completions", json=chat(max_tokens=100)).status_code == 200


def test_the_end_and_the_next_start(serving, client, ledger, upstream, database):
    answers = [client.post("/v1/chat/completions", json=chat()) for _ in range(20)]
    assert serving.stop() == 0
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT request_id, kind FROM billing_ledgerentry ORDER BY id").fetchall()
    kinds = {}
    for request_id, kind in rows:
        kinds.setdefault(request_id, []).append(kind)
    assert {answer.headers["x-request-id"] for answer in answers} == set(kinds)
    assert open_requests(kinds) == {}
    serving.start()
    assert client.post("/v1/chat/completions", json=chat()).status_code == 200


def test_a_database_that_goes_away_and_comes_back(serving, client, database, ledger, upstream):
    """Known keys go on, rows go to the journal, and from there into the database."""
    assert client.post("/v1/chat/completions", json=chat()).status_code == 200
    name = database.rpartition("/")[2]
    with psycopg.connect(database.replace(f"/{name}", "/postgres"), autocommit=True) as server:
        try:
            server.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            during = [client.post("/v1/chat/completions", json=chat(stream=n % 2 == 0)) for n in range(6)]
            assert {answer.status_code for answer in during} == {200}
            assert list((serving.folder / "journal").glob("*.jsonl"))
        finally:
            server.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')
    for answer in during:
        assert set(ledger(answer.headers["x-request-id"])) == {"hold", "settlement"}
    eventually(lambda: not list((serving.folder / "journal").glob("*.jsonl")))


def test_a_standby_that_takes_no_writes_is_an_outage_and_no_end(serving, client, database, ledger):
    """After a failover to a replica, inserts raise `InternalError` (read-only transaction): as good as away."""
    name = database.rpartition("/")[2]
    with psycopg.connect(database.replace(f"/{name}", "/postgres"), autocommit=True) as server:
        try:
            server.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            during = [client.post("/v1/chat/completions", json=chat(), timeout=10) for _ in range(3)]
            assert {answer.status_code for answer in during} == {200}
        finally:
            server.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = off')
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    for answer in during:
        assert set(ledger(answer.headers["x-request-id"])) == {"hold", "settlement"}


def test_killed_it_closes_its_orphans_at_the_next_start(serving, client, upstream, database):
    upstream.always(sends(delta("Hi"), end="stall"))
    with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
        request_id = response.headers["x-request-id"]
        next(response.iter_raw())
        serving.signal(signal.SIGKILL)
        serving.wait()
    serving.start()
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT kind, estimated, status FROM billing_ledgerentry WHERE request_id = %s ORDER BY id", [request_id]
        ).fetchall()
    assert rows == [("hold", False, None), ("settlement", True, 500)]
