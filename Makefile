# Everything works on a fresh machine, and again: scripts/setup installs what is missing, and is quick when nothing is.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench soak clean

python := .venv/bin/python

export PYTHON

# Compiled once, and kept beside the sources: the tests start hundreds of processes that import them, also where an image
# has told Python not to (empty: not told).
export PYTHONDONTWRITEBYTECODE :=

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing (bubblewrap, .venv); PYTHON=python3.12 chooses the interpreter
	@scripts/setup

demo: ## the demo; STORE=redis runs it on a Redis of its own, ARGS=... is passed on
ifeq ($(STORE),redis)
	@scripts/setup redis
	@$(python) scripts/demo_on_redis.py $(ARGS)
else
	@scripts/setup
	@.venv/bin/understudy demo $(if $(STORE),--store '$(STORE)') $(ARGS)
endif

# Three processes: two are on real Ray, whose tests mostly wait, while one has the rest (see tests/conftest.py).
test: ## lint, then all tests except soak and bench, on real servers; ARGS=... goes to pytest
	@scripts/setup test
	@$(MAKE) --no-print-directory lint
	@$(python) -m pytest --numprocesses 3 --dist loadgroup $(ARGS)

lint: ## ruff and mypy --strict
	@scripts/setup
	@$(python) -m ruff check --quiet .
	@$(python) -m ruff format --check --quiet .
	@$(python) -m mypy

bench: ## measure (minutes)
	@scripts/setup test
	@$(python) -m pytest -m bench --timeout=1800 --capture=no $(ARGS)

soak: ## the long tests (an hour or more)
	@scripts/setup test
	@$(python) -m pytest -m soak --timeout=0 $(ARGS)

clean: ## remove .venv and everything that was generated
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find actors policies cluster tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
