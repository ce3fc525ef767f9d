"""Print constraints.txt: the versions of what our direct requirements brought along into this environment.

For `make constraints`, after a requirement changed; `make install` reads the file with pip's `-c`.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Versions of what requirements.txt and requirements-dev.txt bring along; the direct ones are pinned there.
# Written by `make constraints`.
"""


def main() -> None:
    freeze = [sys.executable, "-m", "pip", "freeze", "--disable-pip-version-check"]
    lines = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    pinned = direct()
    sys.stdout.write(HEADER + "".join(f"{line}\n" for line in lines if project(line) not in pinned))


def direct() -> set[str]:
    files = (ROOT / "requirements.txt", ROOT / "requirements-dev.txt", ROOT / "requirements-demo.txt")
    return {project(line) for file in files for line in file.read_text().splitlines() if "==" in line}


def project(line: str) -> str:
    """The normalised name (PEP 503) that a line pins."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=]", line, maxsplit=1)[0]).lower()


if __name__ == "__main__":
    main()
