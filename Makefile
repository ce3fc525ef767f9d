# One way in: `make run` serves, `make test` tests. README.md says the rest.

VENV ?= .venv
PYTHON ?=
# Further arguments for pytest and the benchmarks: make test ARGS="-k budget"
ARGS ?=

# Quoted wherever used: the path may contain spaces.
py = "$(VENV)/bin/python"
export PYTHON

.DEFAULT_GOAL := run
.PHONY: install install-dev run test test-long bench lint migrations-check constraints clean

# All that serving needs, in VENV. A no-op where nothing changed.
install:
	@sh scripts/install.sh "$(VENV)"

install-dev:
	@sh scripts/install.sh "$(VENV)" dev

# exec: Ctrl-C and SIGTERM reach the gateway itself.
run: install
	@exec $(py) manage.py serve

test: install-dev
	@sh scripts/scratch.sh $(py) -m pytest -n 2 -m "not long" $(ARGS)

# Fuzz, soak and big models: one at a time, with a longer limit each.
test-long: install-dev
	@sh scripts/scratch.sh $(py) -m pytest -m long --timeout 1800 $(ARGS)

bench: install-dev
	@$(py) benchmarks/run.py $(ARGS)

lint: install-dev migrations-check
	@$(py) -m ruff check .
	@$(py) -m ruff format --check .
	@sh scripts/scratch.sh $(py) -m mypy

migrations-check: install-dev
	@sh scripts/scratch.sh $(py) manage.py makemigrations --check --dry-run

# After a requirement changed, in an environment made from the new ones.
constraints: install-dev
	@$(py) scripts/freeze_constraints.py >constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis benchmarks/build
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
