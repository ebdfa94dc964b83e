# Thin: every target is one command of the project. `make help` lists them.
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
LEGS := $(BIN)/python -m harness.legs
SCENARIOS := $(patsubst molecule/%/molecule.yml,%,$(wildcard molecule/*/molecule.yml))
GATES := $(BIN)/python tests/support/gates.py
BENCHES := $(filter-out server,$(sort $(notdir $(basename $(wildcard tests/bench/*.py)))))
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := all
.PHONY: all help env demo test test-all test-fast molecule bench docs lint sanity importer docs-lint smoke format

all: env help ## set the environment up, then show this help

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

env: ## create .venv and install what is missing; nothing happens the second time
	@scripts/bootstrap

demo: env ## the complete pipeline, run locally: tarball in, report out (INPUT=my.vcf.gz CNA=my.cna.tsv: your own sample)
	@scripts/demo $(if $(INPUT),--input "$(INPUT)") $(if $(CNA),--cna "$(CNA)") $(DEMO_ARGS)

test: env ## each main flow once; boots virtual machines (25 minutes, 40 the first time, on two cores without KVM)
	@$(LEGS) --standard

test-all: env ## every leg of the tests, or some: LEG=packer, LEG="instance molecule-upgrade"
	@$(LEGS) $(LEG)

test-fast: env ## linters, unit and contract tests (about five minutes)
	@$(LEGS) lint fast

molecule: env ## the roles in containers with systemd (MOLECULE="default upgrade": these scenarios only)
	@$(LEGS) $(addprefix molecule-,$(or $(MOLECULE),$(SCENARIOS)))

bench: ## measure (NAME=databundle, dataimage, site or spot; BENCH_ARGS="--runs 1": shorter)
	@case " $(BENCHES) " in *" $(or $(NAME),?) "*) ;; *) echo "make bench: NAME: found '$(NAME)', allowed one of: $(BENCHES)" >&2; exit 2;; esac
	@$(MAKE) env
	@PYTHONPATH=tests $(BIN)/python tests/bench/$(NAME).py $(BENCH_ARGS)

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
	$(GATES) importer docs smoke

# Several minutes the first time, about one after that: `make test` runs it, lint and test-fast do not.
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
