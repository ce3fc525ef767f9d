"""Who may import whom, and what every point of extension brings: as tests, since a drawing drifts."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from channels.routing import URLRouter

from gateway import consumers, pipeline, providers, routing
from gateway.providers.base import Provider
from security import detectors

ROOT = Path(__file__).resolve().parent.parent
APPS = ("ailb_project", "gateway", "keys", "billing", "security", "memory", "rag", "grpc_module")
OURS = re.compile(rf"^({'|'.join(APPS)})(\.|$)")
GENERATED = re.compile(r"/migrations/|_pb2(_grpc)?\.py$")

# Modules that must not know the ORM, a request's own path first of all.
PURE = (
    "gateway/providers/*.py", "gateway/routing/*.py", "security/detectors/*.py", "gateway/types.py",
    "gateway/errors.py", "gateway/doors/*.py", "gateway/translate/*.py", "gateway/problems.py", "gateway/exchange.py",
    "gateway/planning.py", "gateway/attempts.py", "gateway/tries.py", "gateway/circuits*.py",
    "gateway/statistics/sketch.py", "gateway/statistics/tallies.py", "gateway/simulation/*.py",
    "gateway/identifiers.py", "gateway/tokens.py", "billing/pricing.py", "billing/periods.py", "keys/secrets.py",
    "keys/limits/*.py",
)  # fmt: skip
LEAVES = ("gateway/types.py", "gateway/errors.py", "gateway/identifiers.py", "security/detectors/base.py")
# Who may catch everything, and why.
MAY_CATCH_ALL = {
    "gateway/consumers.py": "the outermost renderer",
    "security/engine.py": "a guard that breaks refuses, whatever broke it",
    "gateway/tokens.py": "a panic of tiktoken's that is no Exception and cannot be imported",
}


def sources() -> list[Path]:
    """Every Python file of the gateway itself."""
    files = [path for app in APPS for path in (ROOT / app).rglob("*.py")]
    return [path for path in files if not GENERATED.search(str(path))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def matching(*patterns: str) -> list[Path]:
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """The modules that a file imports, `from a import b` as both `a` and `a.b`; what only a type checker reads is left
    out. `at_import`: only what is imported with the file.
    """
    found: set[str] = set()
    for node in _running(ast.parse(path.read_text()), into_functions=not at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _running(node: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if not into_functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield child
        yield from _running(child, into_functions=into_functions)


# ── who imports whom ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", matching(*PURE), ids=name_of)
def test_a_requests_own_path_knows_no_orm(path):
    known = {name for name in imports(path) if name.startswith(("django.db", "django.contrib")) or ".models" in name}
    assert not known


@pytest.mark.parametrize("path", matching(*LEAVES), ids=name_of)
def test_leaves_import_nothing_of_ours(path):
    allowed = {"keys.secrets"} if path.name == "secrets.py" else set()
    assert not {name for name in imports(path) if OURS.match(name)} - allowed


@pytest.mark.parametrize("path", matching("gateway/providers/*.py"), ids=name_of)
def test_providers_know_types_errors_and_each_other(path):
    ours = {name for name in imports(path) if OURS.match(name)}
    allowed = re.compile(r"gateway(\.(providers|translate|types|errors|upstream_http|tokens)(\.|$)|$)")
    if path.stem == "demo":  # runs its own upstream
        ours -= {name for name in ours if name.startswith(("ailb_project.loopback", "gateway.demo_server"))}
    assert not {name for name in ours if not allowed.match(name)}


@pytest.mark.parametrize("path", matching("gateway/translate/*.py"), ids=name_of)
def test_translators_are_pure(path):
    """They know the neutral form and each dialect its own: no I/O, no clock, no other dialect."""
    known = imports(path)
    assert (
        not {name for name in known if OURS.match(name)}
        - {"gateway"}
        - {name for name in known if re.match(r"gateway\.(types|errors|translate)(\.|$)", name)}
    )
    assert not known & {"time", "datetime", "asyncio", "random", "secrets", "os", "aiohttp", "socket"}
    dialects = {"openai", "anthropic", "ollama"} - {path.stem.split("_")[0]}
    assert not {name for name in known for dialect in dialects if name.startswith(f"gateway.translate.{dialect}")}


@pytest.mark.parametrize("path", matching("gateway/routing/*.py"), ids=name_of)
def test_strategies_know_types_and_signals(path):
    ours = {name for name in imports(path) if OURS.match(name)}
    assert not {name for name in ours if not re.match(r"gateway(\.(routing|types)(\.|$)|$)", name)}


def test_apps_do_not_reach_into_each_others_models_on_the_data_plane():
    """The pipeline calls apps' services; which tables they have is their own business."""
    for path in matching(
        "gateway/pipeline.py", "gateway/consumers.py", "gateway/steps.py", "gateway/attempts.py", "gateway/tries.py"
    ):
        assert not {name for name in imports(path) if ".models" in name}, name_of(path)


def test_only_consumers_call_the_pipeline():
    callers = {name_of(path) for path in sources() if {"gateway.pipeline", "gateway.pipeline.answer"} & imports(path)}
    assert callers <= {"gateway/consumers.py"}


def test_sdks_are_the_tests_clients_and_not_the_hot_paths():
    for path in sources():
        sdks = {name.split(".")[0] for name in imports(path)} & {"openai", "anthropic", "httpx", "httpx2", "requests"}
        assert not sdks, name_of(path)


# ── broad handlers ──────────────────────────────────────────────────────────────────────────────────────────────────


def _catches_all(handler: ast.ExceptHandler) -> bool:
    """Whether it swallows what nobody foresaw; one that ends in `raise` only tidies up."""
    if isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None:
        return False
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


def test_only_the_outermost_places_catch_everything():
    found: dict[str, int] = {}
    for path in sources():
        broad = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ExceptHandler) and _catches_all(n)
        ]
        if broad:
            found[name_of(path)] = len(broad)
    assert found == dict.fromkeys(MAY_CATCH_ALL, 1)


# ── points of extension ─────────────────────────────────────────────────────────────────────────────────────────────


def _contract_tests(folder: str, slug: str, contract: str) -> list[type]:
    module = importlib.import_module(f"tests.{folder}.test_{slug}")
    bases = importlib.import_module(f"tests.{folder}.contract")
    base = getattr(bases, contract)
    return [
        member for name, member in vars(module).items()
        if inspect.isclass(member) and issubclass(member, base) and name.startswith("Test")
    ]  # fmt: skip


@pytest.mark.parametrize("kind", providers.kinds())
def test_every_provider_is_one_and_keeps_the_contract(kind):
    vendor = providers.vendor(kind)
    assert issubclass(vendor, Provider)
    assert vendor.slug == kind == vendor.__module__.rpartition(".")[2]
    assert vendor.price_book == "" or isinstance(vendor.price_book, str)
    (test,) = _contract_tests("gateway.providers", kind, "ProviderContract")
    assert test.kind == kind


@pytest.mark.parametrize("strategy", routing.strategies())
def test_every_strategy_is_one_and_keeps_the_contract(strategy):
    order = routing.strategy(strategy).order
    assert order.__module__.rpartition(".")[2] == strategy
    (test,) = _contract_tests("gateway.routing", strategy, "StrategyContract")
    assert test.strategy == strategy


@pytest.mark.parametrize("name", detectors.names())
def test_every_detector_keeps_its_contract(name):
    module = importlib.import_module(f"tests.security.detectors.test_{name}")
    assert f"name = {name!r}".replace("'", '"') in Path(str(module.__file__)).read_text()
    assert "DetectorContract" in Path(str(module.__file__)).read_text()


def test_a_module_that_breaks_the_rule_stops_the_start(monkeypatch):
    module = importlib.import_module("gateway.providers.demo")
    monkeypatch.setattr(module.Vendor, "slug", "another")
    providers.vendor.cache_clear()
    with pytest.raises(providers.RegistryError, match="demo"):
        providers.check()
    monkeypatch.undo()
    providers.vendor.cache_clear()
    providers.check()


def test_an_unknown_kind_names_those_there_are():
    with pytest.raises(providers.RegistryError, match="anthropic, deepseek, demo"):
        providers.vendor("nobody")


# ── doors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _routes() -> dict[str, object]:
    """Every path of the ASGI application that is not Django's, with its consumer."""
    from ailb_project import asgi

    assert isinstance(asgi.http, URLRouter)
    routes = {str(route.pattern): route.callback for route in asgi.http.routes}
    assert routes.pop("") is asgi.django_application, "what nothing else takes is Django's"
    return {path: getattr(callback, "consumer_class", callback) for path, callback in routes.items()}


def test_every_inference_route_goes_through_the_pipeline():
    """A route that reached a provider past it would escape keys, budgets and the ledger (Bifrost#2873)."""
    inference = {path: consumer for path, consumer in _routes().items() if path.startswith("v1/")}
    assert inference, "there is at least one"
    for path, consumer in inference.items():
        assert issubclass(consumer, consumers.InferenceConsumer), path
        assert re.search(r"await pipeline\.(answer|count_tokens)\(exchange", inspect.getsource(consumer.serve)), path


def test_other_routes_are_probes():
    others = {path for path in _routes() if not path.startswith("v1/")}
    assert others == {"livez", "readyz", "healthz", "metrics"}


def test_only_the_attempts_speak_to_providers():
    """`Plane.provider` is the one way to a provider's client."""
    users = {name_of(path) for path in sources() if re.search(r"\.provider\(\w", path.read_text())}
    assert users == {"gateway/attempts.py"}
    outbound = {name_of(path) for path in sources() if "aiohttp" in imports(path)}
    assert outbound <= {"gateway/outbound.py", "gateway/upstream_http.py", "gateway/providers/base.py"}


def test_the_pipelines_steps_come_in_the_order_of_the_architecture():
    source = inspect.getsource(pipeline.answer)
    steps = (
        "_authenticated(", "door.parse(", "registry.resolve(", "limits.admit(", "refuse_used_up(", "_screened(",
        "engine.enforce(", "recall(", "augment(", "planning.plan(", "holds.place(", "_Call(", "remember(",
    )  # fmt: skip
    places = [source.index(step) for step in steps]
    assert places == sorted(places)
