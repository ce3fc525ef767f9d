"""Portkey's gateway, the peer that installs in seconds: an npm package, kept in build/ and run by Node.

It does less than AILB does: no keys of its own, no budgets, no metering. https://github.com/Portkey-AI/gateway
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.processes import Server, free_port
from benchmarks.tools import BUILD, FOLDER

PACKAGE, VERSION = "@portkey-ai/gateway", "1.15.2"
# What Portkey's own lock file has. With a newer one, which npm takes, each stream is answered with 500, "TypeError:
# immutable" (Portkey-AI/gateway#1389).
OVERRIDES = {"@hono/node-server": "1.13.5"}
TITLE = f"Portkey gateway {VERSION} (Node)"
# 25 MB in 95 packages: seconds, with a registry at hand.
INSTALL_SECONDS = 180


class Unavailable(Exception):
    """It cannot be run here; the text says why."""


@dataclass(frozen=True)
class Program:
    """An installed gateway: the interpreter and the script that starts it."""

    node: str
    script: Path


def install() -> Program:
    """Installs the pinned version into build/ unless it is there. Raises `Unavailable`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Unavailable("no `node` and `npm` here")
    folder = BUILD / "portkey"
    script = folder / "node_modules" / PACKAGE / "build" / "start-server.js"
    manifest = msgspec.json.encode({"private": True, "dependencies": {PACKAGE: VERSION}, "overrides": OVERRIDES})
    if not _is_installed(folder, manifest):
        _npm_install(npm, folder, manifest)
    if not script.exists():
        raise Unavailable(f"{PACKAGE} {VERSION} holds no {script.name}")
    return Program(node, script)


def _is_installed(folder: Path, manifest: bytes) -> bool:
    """npm writes its own list of what it has put there last, so that half an installation has none."""
    known, finished = folder / "package.json", folder / "node_modules" / ".package-lock.json"
    return finished.exists() and known.exists() and known.read_bytes() == manifest


def _npm_install(npm: str, folder: Path, manifest: bytes) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "package.json").write_bytes(manifest)
    # Scripts of 95 packages have no business here, and this one runs without them.
    quietly = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--omit=dev"]
    command = [npm, "install", "--prefix", str(folder), *quietly]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS, cwd=folder)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"npm took more than {INSTALL_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        # Behind its warnings, and in front of where its log is.
        said = [line for line in str(error.stderr).splitlines() if line.startswith("npm error")]
        raise Unavailable("; ".join(said[:2]) or str(error)) from None


def launch(program: Program, *, log: Path, cores: Iterable[int]) -> Server:
    """Starts it without waiting for it, on loopback and without its console, which logs each request."""
    port = free_port()
    preload = ["--require", str(FOLDER / "loopback.cjs")]
    command = [program.node, *preload, str(program.script), "--headless", f"--port={port}"]
    # Nothing of a developer's own: it would take proxies and hosts from there.
    environment = {"PATH": os.environ.get("PATH", ""), "NODE_ENV": "production"}
    return Server("Portkey", command, port=port, log=log, cores=cores, environment=environment)


def headers(upstream: str) -> tuple[str, ...]:
    """What tells it where to go with a request; `upstream` ends in /v1."""
    return ("x-portkey-provider: openai", f"x-portkey-custom-host: {upstream}")
