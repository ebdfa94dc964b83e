# Thin: every target is one command of the project. `make help` lists them.
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
GATES := $(BIN)/python tests/support/gates.py
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := all
.PHONY: all help env demo test test-fast test-slow molecule bench lint sanity importer docs-lint smoke format

all: env help ## set the environment up, then show this help

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

env: ## create .venv and install what is missing; nothing happens the second time
	@scripts/bootstrap

demo: env ## the whole road on this machine: tarball in, report out (INPUT=my.vcf.gz CNA=my.cna.tsv: your own sample)
	@scripts/demo $(if $(INPUT),--input "$(INPUT)") $(if $(CNA),--cna "$(CNA)") $(DEMO_ARGS)

test: test-fast test-slow ## all tests; boots virtual machines (under an hour on two cores without KVM)

test-fast: lint sanity ## lint, sanity tests, unit and contract tests (about five minutes)
	$(PYTEST) -n auto -m "not slow"

test-slow: env ## the tests that build images and boot machines
	$(PYTEST) -m slow -n 2 --dist loadfile

molecule: env ## the roles in containers with systemd, part of test-slow (MOLECULE="default upgrade": these scenarios only)
	MOLECULE="$(MOLECULE)" $(PYTEST) -rP tests/integration/test_molecule.py

bench: env ## measure (NAME=databundle, dataimage, site or spot; BENCH_ARGS="--runs 1": shorter)
	@$(BIN)/python tests/bench/$(NAME).py $(BENCH_ARGS)

lint: env ## every linter and type checker
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	shellcheck scripts/bootstrap scripts/build_tools .ci/run
	ansible-lint --offline --strict
	antsibull-changelog lint
	$(GATES) importer docs smoke

# Several minutes the first time, about one after that: test-fast runs it, lint does not.
sanity: env ## ansible-test's sanity tests, without a container (TEST="pep8 pylint": these only)
	$(GATES) sanity $(TEST:%=--test %)

importer: env ## import the built artifact as Galaxy does, with the strictest settings
	$(GATES) importer

docs-lint: env ## check the documentation of plugins and roles, and the links in it
	$(GATES) docs

smoke: env ## install the artifact elsewhere, read its documentation, check its playbooks' syntax
	$(GATES) smoke

format: env ## format the Python code
	ruff format .
	ruff check --fix .
