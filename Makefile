# The README's commands. Everything is installed into .venv from requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test check studio clients bench persona browser lock clean

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: .venv/.ready    ## base and persona side by side, then UI and API on 127.0.0.1:7860 (ARGS=--exit stops after printing)
	$(BIN)/bianlian demo $(ARGS)

test: .venv/.ready-test browser    ## linters, types and the whole suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

check: .venv/.ready-test    ## linters, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow and not browser"

studio: .venv/.ready-test browser    ## the other tabs of the page in a browser: ten minutes more
	$(BIN)/pytest -m studio tests/ui

clients: .venv/.ready .venv-clients/.ready    ## other programs' clients against a real server, as in docs/clients.md
	cd tests/clients && ../../.venv-clients/bin/python -m pytest $(ARGS)

bench: .venv/.ready    ## the serving benchmark against its in-process peers
	$(BIN)/python -m benchmarks.bench_serving $(ARGS)

persona: .venv/.ready    ## train the shipped personas again, from their shipped data
	$(BIN)/python -m training

# Constraints rather than requirements: the lock knows every package, each target installs what it needs.
.venv/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -q --progress-bar on -c requirements.lock -e .
	touch $@

.venv/.ready-test: .venv/.ready
	$(PIP) install -q --progress-bar on -c requirements.lock -e '.[test]'
	touch $@

# The clients' dependencies and ours never meet, as they do not on their users' machines.
.venv-clients/.ready: tests/clients/requirements.txt tests/clients/requirements.lock
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip --disable-pip-version-check install -q --progress-bar on \
		-c tests/clients/requirements.lock -r tests/clients/requirements.txt
	touch $@

# Browser tests drive the distribution's Chromium; Chinese pages need a font that has the characters.
browser:
	@if ! command -v chromium >/dev/null || ! fc-list 2>/dev/null | grep -qi cjk; then \
		if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q chromium fonts-noto-cjk; \
		else \
			echo "install chromium and a CJK font (Debian: apt install chromium fonts-noto-cjk)"; exit 1; \
		fi; \
	fi

lock: .venv/.ready-test    ## pin what is installed now
	$(PIP) freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > requirements.lock

clean:
	rm -rf .venv .venv-clients *.egg-info .mypy_cache .ruff_cache .pytest_cache
