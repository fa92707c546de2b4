# Needs Python 3.11 or newer and make; everything else is installed into .venv/ from src/requirements-dev.lock.

PYTHON ?= python3
PORT ?= 8000
export PIP_DISABLE_PIP_VERSION_CHECK := 1

checks := format-check style imports types lock-check openapi-check freeze-check migrations test soak

.DEFAULT_GOAL := help
.PHONY: help install run drill bench growth overload canary check lint format openapi freeze lock clean $(checks)
.SUFFIXES:

# `python -m` instead of the scripts in .venv/bin, whose first line breaks when the folder is moved or renamed.
# The whole path, because Python 3.14 warns at each start when it is called by one with `..` in it.
python := "$(CURDIR)/.venv/bin/python"
compile := UV_NO_CONFIG=1 $(python) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --excludes unused.txt $(if $(UPGRADE),--upgrade) pyproject.toml

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

install: .venv/installed  ## Create .venv/ with exactly what src/requirements-dev.lock names

# uv, itself checked against the lock, installs in a third of the time that pip takes, but knows nothing of pip's
# settings (mirror, certificates): where it fails, pip does the work. --no-deps: the lock is complete but for unused.txt,
# and pip would look for what that names.
.venv/installed: src/requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3' >&2; exit 1; }
	@.venv/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 1; }
	@echo 'installing src/requirements-dev.lock into .venv/'
	@{ awk '/^uv==/,/# via/' $< | .venv/bin/python -m pip install --quiet --require-hashes -r /dev/stdin && \
		.venv/bin/python -m uv pip sync --quiet --require-hashes --compile-bytecode \
			--python .venv/bin/python $<; } || { \
		echo 'uv could not install the packages; trying pip' >&2; \
		.venv/bin/python -m ensurepip >/dev/null; \
		.venv/bin/python -m pip install --quiet --require-hashes --no-deps -r $<; }
	@touch $@

run: install  ## Start PostgreSQL, Valkey, API and worker (PORT=8000)
	@cd src && exec $(python) -m scripts.dev --port $(PORT)

test: install  ## Run the tests, on servers of their own
	cd src && $(python) -m pytest -n auto

drill: install  ## Run the checks that are too slow for `make test`; ARGS=NAME for one
	cd src && $(python) -m drill $(ARGS)

soak: install  ## Put load on the service while its servers fail, for 20 minutes; SECONDS=60 for one
	cd src && $(python) -m soak $(SECONDS)

bench: install  ## Compare what a request costs with the same written by hand; `bench overload`, ARGS="--json me"
	@cd src && exec $(python) -m bench $(strip $(filter growth overload,$(MAKECMDGOALS)) $(ARGS))

growth overload: bench

canary: install  ## Run the tests on the newest and on the lowest versions; ARGS=lowest
	@cd src && $(python) -m scripts.canary $(ARGS)

check: install  ## All checks but the drills; goes on after a failure, and lists what failed at the end
	@failed=; for each in $(checks); do \
		echo "make $$each"; \
		$(MAKE) --no-print-directory $$each SECONDS=60 || failed="$$failed $$each"; \
	done; \
	if [ -n "$$failed" ]; then echo "make check failed in:$$failed" >&2; exit 1; fi

lint: format-check style imports  ## Check format, style and imports

format-check: install
	@cd src && $(python) -m ruff format --check . || { echo 'not formatted: make format' >&2; exit 1; }

style: install
	@cd src && $(python) -m ruff check .

imports: install
	@cd src && $(python) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

format: install  ## Format the code and mend what ruff can mend
	cd src && $(python) -m ruff check --fix . ; $(python) -m ruff format .

types: install
	cd src && $(python) -m mypy

openapi: install  ## Write src/openapi.json anew
	cd src && $(python) -m scripts.openapi

openapi-check: install
	@cd src && $(python) -m scripts.openapi --check

freeze: install  ## Record the hashes of new migrations, which then never change
	cd src && $(python) -m scripts.freeze

freeze-check: install
	@cd src && $(python) -m scripts.freeze --check

migrations: install
	@cd src && $(python) -m scripts.servers sh -c \
		'$(python) -m alembic upgrade head && $(python) -m alembic check'

lock: install  ## Write the lock files anew; UPGRADE=1 takes the newest versions
	cd src && $(compile) -o requirements.lock
	cd src && $(compile) --group dev -c requirements.lock -o requirements-dev.lock

# The compiler keeps what the output file already names, so this fails when pyproject.toml was changed and not locked,
# and not because something new was released.
lock-check: install
	@cd src && new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && cp requirements*.lock "$$new" && \
		$(compile) -o "$$new/requirements.lock" && \
		$(compile) --group dev -c requirements.lock -o "$$new/requirements-dev.lock" && \
		diff -u requirements.lock "$$new/requirements.lock" && \
		diff -u requirements-dev.lock "$$new/requirements-dev.lock" || \
		{ echo 'the lock files are not current: make lock' >&2; exit 1; }

clean:  ## Remove .venv/ and caches, not the data in .local/
	rm -rf .venv .venv-canary-* src/.mypy_cache src/.pytest_cache src/.ruff_cache src/.import_linter_cache src/.hypothesis
	find src -name __pycache__ -type d -prune -exec rm -rf {} +
