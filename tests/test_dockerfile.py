"""The image is built by the same `make install` and started by the same `serve` as everywhere else."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's build stages, each a list of (instruction, arguments)."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, arguments.strip()))
    return found


def values(stage, instruction):
    return [arguments for name, arguments in stage if name == instruction]


def test_the_environment_is_made_by_make_install(stages):
    build, image = stages
    assert "make install VENV=/opt/ailb" in values(build, "RUN")
    assert "--from=build /opt/ailb /opt/ailb" in values(image, "COPY")
    assert not any("pip" in command for stage in stages for command in values(stage, "RUN"))


def test_what_make_install_reads_is_copied_before_it(stages):
    build = stages[0]
    copied = " ".join(values(build, "COPY")).split()
    installer = (ROOT / "scripts" / "install.sh").read_text()
    for file in set(re.findall(r"requirements(?:-demo)?\.txt|constraints\.txt", installer)) | {"Makefile", "scripts"}:
        assert file in copied
    names = [name for name, _ in build]
    assert names.index("COPY") < build.index(("RUN", "make install VENV=/opt/ailb"))


def test_both_stages_have_the_same_python(stages):
    """The environment's `python` is a link into the image that made it."""
    assert {values(stage, "FROM")[0].split()[0] for stage in stages} == {"python:3.11-slim"}


def test_it_serves_as_somebody_without_rights(stages):
    image = stages[-1]
    users = values(image, "USER")
    assert users
    assert users[-1] not in {"root", "0"}
    names = [name for name, _ in image]
    assert names.index("USER") < names.index("CMD")
    assert [json.loads(command) for command in values(image, "CMD")] == [["python", "manage.py", "serve"]]
    assert not values(image, "ENTRYPOINT")


def test_it_is_reachable_and_keeps_its_data(stages):
    image = stages[-1]
    environment = " ".join(values(image, "ENV")).split()
    assert {"HOST=0.0.0.0", "AILB_DATA_DIR=/data"} <= set(environment)
    assert values(image, "VOLUME") == ["/data"]
    assert values(image, "EXPOSE") == ["8080 50051"]


def test_the_health_check_is_python_that_asks_livez(stages):
    (check,) = values(stages[-1], "HEALTHCHECK")
    program, flag, code = json.loads(check.partition("CMD")[2])
    assert (program, flag) == ("python", "-c")
    ast.parse(code)
    assert "/livez" in code


def test_the_build_context_leaves_out_secrets_and_data():
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".git", ".venv", "var", ".env"} <= set(ignored)
