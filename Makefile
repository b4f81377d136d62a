# Everything that is built, shown, tested or measured here. Each target does its own set-up (tools/setup).

.DEFAULT_GOAL := build
.PHONY: build demo test test-fast lint format bench soak lock clean help

export PATH := $(PATH):$(HOME)/.cargo/bin
VENV := .venv/bin
MINUTES ?= 60
ARGS ?=

build: ## Build the release product into .venv, as .venv/bin/ramet (what `make` alone does)
	@tools/setup build

demo: ## Show it: a golden image, 1,000 clones, a group snapshot under load, a kill (ARGS="--image FILE")
	@tools/setup build tools
	@$(VENV)/ramet demo $(ARGS)

test: ## Run the linters, the Rust tests and the Python tests
	@tools/setup build tools
	@tools/lint
	cargo test --workspace --exclude ramet-py --locked --quiet
	$(VENV)/pytest $(ARGS)

test-fast: ## Run the Python tests that take less than a second each
	@tools/setup build
	$(VENV)/pytest -m "not slow" $(ARGS)

lint: ## Run ruff, mypy, rustfmt and clippy; change nothing
	@tools/setup venv
	@tools/lint

format: ## Put Python and Rust into their format
	@tools/setup venv
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .
	cargo fmt --all

bench: ## Measure; prints a table and stores JSON in bench/results
	@tools/setup build tools
	$(VENV)/python bench $(ARGS)

soak: ## Run the random tests with new seeds until one fails (MINUTES=60)
	@tools/setup build tools
	@tools/soak $(MINUTES)

lock: ## Renew requirements/dev.lock from pyproject.toml
	@tools/setup venv
	@tools/lock

clean: ## Remove what was built: .venv, target, caches
	rm -rf .venv target dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f python/ramet/*.so

help: ## Say what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
