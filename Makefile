# Thin: every target is one command of the project. `make help` lists them.
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
BENCHES := $(filter-out server,$(sort $(notdir $(basename $(wildcard tests/bench/*.py)))))
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := all
.PHONY: all help env demo test test-fast test-slow molecule bench docs lint format

all: env help ## set the environment up, then show this help

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

env: ## create .venv and install what is missing; nothing happens the second time
	@scripts/bootstrap

demo: env ## the whole road on this machine: tarball in, report out (INPUT=my.vcf.gz CNA=my.cna.tsv: your own sample)
	@scripts/demo $(if $(INPUT),--input "$(INPUT)") $(if $(CNA),--cna "$(CNA)") $(DEMO_ARGS)

test: test-fast test-slow ## all tests; boots virtual machines (under an hour on two cores without KVM)

test-fast: lint ## lint, unit and contract tests (about five minutes)
	$(PYTEST) -n auto -m "not slow"

test-slow: env ## the tests that build images and boot machines
	$(PYTEST) -m slow -n 2 --dist loadfile

molecule: env ## the roles in containers with systemd, part of test-slow (MOLECULE="default upgrade": these scenarios only)
	MOLECULE="$(MOLECULE)" $(PYTEST) -rP tests/integration/test_molecule.py

bench: ## measure (NAME=databundle, dataimage, site or spot; BENCH_ARGS="--runs 1": shorter)
	@case " $(BENCHES) " in *" $(or $(NAME),?) "*) ;; *) echo "make bench: NAME: found '$(NAME)', allowed one of: $(BENCHES)" >&2; exit 2;; esac
	@$(MAKE) env
	@$(BIN)/python tests/bench/$(NAME).py $(BENCH_ARGS)

docs: env ## write what is generated: tables in the roles' READMEs, and CHANGELOG.rst before the first release
	@cd tests && ../$(BIN)/python -m support.role_readme && ../$(BIN)/python -m support.changelog

lint: env ## every linter and type checker
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	shellcheck scripts/bootstrap packer/toolchain/build .ci/run
	ansible-lint --offline --strict
	antsibull-changelog lint

format: env ## format the Python code
	ruff format .
	ruff check --fix .
