# SPDX-License-Identifier: Apache-2.0
# Everything installs what it needs by itself; a second run finds it there and is quick.

VENV := .venv
LIB := $(VENV)/lib/proa
PYTHON := $(VENV)/bin/python
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-tools test-slow check setup install unit integration e2e conformance parity bench clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup ## the main job: one image in both hulls, then the comparison
	@setup/demo.sh $(VENV)

test: setup check test-tools ## the whole test suite
	@setup/clients.sh $(VENV)
	$(PYTHON) -m pytest -q tests --ignore=tests/slow

check: setup ## lint, types, import rules, size rules
	$(VENV)/bin/ruff check src tests bench
	$(VENV)/bin/ruff format --check src tests bench
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo 2>/dev/null || $(VENV)/bin/lint-imports

setup: ## Debian packages, the virtual environment, the guest kernel, our native programs
	@setup/all.sh $(VENV)

install: setup ## put proa on the PATH
	$(PYTHON) -m compileall -q src
	ln -sf $(abspath $(VENV))/bin/proa /usr/local/bin/proa

unit: setup ## tests that need no root and no tools
	$(PYTHON) -m pytest -q tests/unit

test-tools: setup
	@setup/apt.sh curl bsdutils erofs-utils skopeo openssl apache2-utils \
		xorriso swtpm grub-pc-bin grub-common u-boot-qemu qemu-system-arm qemu-system-misc
	@setup/test-guest.sh $(LIB)
	@setup/docker-cli.sh $(VENV) && setup/docker-registry.sh $(VENV)

test-slow: setup test-tools ## whole systems as full machines, from disk to ssh: minutes
	@setup/test-debian.sh $(LIB) && setup/test-machine.sh $(LIB)
	$(PYTHON) -m pytest -q tests/slow

integration: setup test-tools ## tests of single packages with the real kernel and tools
	$(PYTHON) -m pytest -q tests/contract tests/integration tests/fault

e2e: setup test-tools ## the daemon with our command line and the docker CLI
	$(PYTHON) -m pytest -q tests/e2e

conformance: setup ## the clients of the Engine API, and the table of the readme made of their results
	@setup/docker-cli.sh $(VENV) && setup/docker-registry.sh $(VENV) && setup/clients.sh $(VENV)
	$(PYTHON) -m pytest -q tests/conformance; status=$$?; $(PYTHON) -m tests.conformance.table; exit $$status

parity: setup test-tools ## the Engine API's tests in either hull, and docs/reference/parity.md made of their results: half an hour
	@setup/clients.sh $(VENV)
	@tests/parity/run.sh $(PYTHON)

bench: setup ## compare with Debian's docker.io, in one run
	@bench/run.sh $(VENV)

clean: ## remove what setup made
	rm -rf $(VENV)
