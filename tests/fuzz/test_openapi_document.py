"""Schemathesis: all that our OpenAPI document says can be asked, and whether the answers are what it says.

As an administrator, as a member's key and as nobody. What is made is used: half of the generated paths name a key, a
person, a team and a budget that are there.
"""

import contextlib
import copy
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import GenerationMode, checks

from tests.fuzz.explore import explore, shares
from tests.fuzz.target import Target
from tests.fuzz.wire import Answer
from tests.support.serving import ADMIN_KEY

Case = schemathesis.Case
Headers = dict[str, str]

checks.load_all_checks()
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
"""Not `positive_data_acceptance`: "exactly one of these fields" and "a key that is there" no document can say."""


class Asker:
    """Sends schemathesis' cases and judges the answers, by its checks and by ours."""

    def __init__(self, target: Target, secret: str | None, among: list[Any] | None = None) -> None:
        self.target = target
        self.headers: Headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.session = requests.Session()
        self.session.trust_env = False
        self.asked = 0
        self.statuses: set[int] = set()
        self.checks = CHECKS if among is None else among

    def __call__(self, case: Case) -> None:
        response = case.call(base_url=self.target.serving.url, session=self.session, headers=self.headers)
        self.counted(response)
        self.judge(case, response)

    def counted(self, response: Any) -> None:
        self.asked += 1
        self.target.asked += 1
        self.statuses.add(response.status_code)

    def judge(self, case: Case, response: Any) -> None:
        sent = response.request
        headers = {name.lower(): values[-1] for name, values in response.headers.items()}
        answer = Answer(response.status_code, headers, response.content, list(headers))
        path, body = sent.url.removeprefix(self.target.serving.url), sent.body or b""
        whole = path.encode() + (body.encode() if isinstance(body, str) else body) + repr(sent.headers).encode()
        self.target.judge(answer, path, head=sent.method == "HEAD", sent=whole)
        if not self.headers and "/models" not in sent.url and sent.method in ("GET", "POST"):
            assert answer.status != 200, "nobody is told anything"
        case.validate_response(response, checks=self.checks, headers=self.headers)


@pytest.fixture
def document(target: Target) -> Iterator[dict[str, Any]]:
    """Ours; what the fuzzer made of the budgets is taken away again: others are to be served afterwards."""
    answer = requests.get(f"{target.serving.url}/api/schema", timeout=30)
    yield answer.json()
    while left := [b for b in target.budgets() if b["id"] != target.organisation]:
        for budget in left:
            target.api("DELETE", f"/api/billing/budgets/{budget['id']}")
    target.restore()
    target.renew()


def schema_of(document: dict[str, Any], *, user_header: bool = False) -> Any:
    """With `X-User-ID` on every operation most cases would be about nothing else."""
    document = copy.deepcopy(document)
    for item in document["paths"].values():
        for operation in item.values():
            operation["parameters"] = [
                parameter
                for parameter in operation.get("parameters", ())
                if user_header or parameter["name"] != "X-User-ID"
            ]
    return schemathesis.openapi.from_dict(document)


def operations(schema: Any) -> list[Any]:
    return [result.ok() for result in schema.get_all_operations()]


def covering(schema: Any) -> list[Case]:
    """Each operation at the borders of what the document says of it, and just beyond them."""
    cases = []
    for operation in operations(schema):
        generation = schema.config.generation_for(operation=operation)
        cases += schema.iter_coverage_cases(
            operation, generation_modes=list(GenerationMode), generation_config=generation
        )
    return cases


@pytest.mark.parametrize("who", ["admin", "member", "nobody"])
@shares(90, 1400)
def test_the_document_says_what_is_answered(target: Target, document: dict[str, Any], seed: int, cases: int, who: str):
    secret = {"admin": ADMIN_KEY, "member": target.member, "nobody": None}[who]
    ask = Asker(target, secret)
    covered = covering(schema_of(document))
    # An even share of them all, another with each seed.
    step = max(len(covered) * 2 // cases, 1)
    for case in covered[seed % step :: step]:
        ask(case)
    generate(ask, schema_of(document), seed, cases // 3)
    generate(ask, schema_of(document, user_header=True), seed, cases // 6)
    assert ask.statuses >= ({200, 400, 404} if secret else {401}), ask.statuses


def generate(ask: Asker, schema: Any, seed: int, cases: int) -> None:
    """About that many cases of schemathesis' own invention, an even share of each operation."""
    found = operations(schema)
    there = ask.target.things()
    modes = cycle(GenerationMode)
    each = max(cases // len(found), 1)
    for operation in found if cases >= len(found) else found[seed % 3 :: 3]:
        names = {parameter.name for parameter in operation.path_parameters}
        for mode, known in zip(modes, (True, False), strict=False):
            path = {name: there[name] for name in names} if known and names else None
            strategy = operation.as_strategy(generation_mode=mode, **({"path_parameters": path} if path else {}))
            explore(seed, max(each // 2, 1), strategy, ask)


@shares(40, 600)
def test_what_one_answer_names_the_next_request_asks_for(
    target: Target, document: dict[str, Any], seed: int, cases: int
):
    """As admin: make, look, change and take away, in any order."""
    ask = Asker(target, ADMIN_KEY)
    wrong: list[BaseException] = []

    class Machine(schema_of(document).as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return {"base_url": target.serving.url, "headers": ask.headers, "session": ask.session}

        def validate_response(self, response: Any, case: Case, **_: Any) -> None:
            ask.counted(response)
            try:
                ask.judge(case, response)
            except BaseException as error:
                wrong.append(error)  # it may not happen again: the gateway remembers
                raise

    for walk in range(cases):
        with contextlib.suppress(FlakyStrategyDefinition):
            wander(Machine, seed + walk)
        if wrong:
            raise wrong[0]
        if ask.asked >= cases:
            return
    raise AssertionError(f"{ask.asked} requests in {cases} walks")


def wander(machine: Any, seed: int) -> None:
    """A few walks. What is there from earlier ones changes what can be asked, which hypothesis calls flaky."""
    settings = hypothesis.settings(
        max_examples=5, stateful_step_count=8, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    hypothesis.seed(seed)(machine)
    run_state_machine_as_test(machine, settings=settings)
