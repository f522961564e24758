# SPDX-License-Identifier: Apache-2.0
#
# What a person types. `make` alone lists it. Everything that is made lies in .venv, .venv-asan and build, which git ignores.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Of the two, the first that is new enough; read when it is used, because `make setup` may have just installed it.
PYTHON ?= $(shell for p in /usr/bin/python3 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
GUEST ?= uml
DEBUG ?=

APT_BUILD := python3 python3-venv python3-dev gcc libc6-dev
APT_GUEST_uml := user-mode-linux
APT_GUEST_qemu := qemu-system-x86
APT_GUEST_pasta := iproute2 nftables
APT_GUEST := busybox-static curl ethtool iperf3 $(APT_GUEST_$(GUEST))
APT_BENCH := sockperf wrk aria2 linux-perf openssl qemu-system-x86
APT_TEST := aria2 clang libclang-rt-14-dev busybox-static curl dhcpcd-base ethtool iperf3 $(APT_GUEST_uml) $(APT_GUEST_qemu) iproute2 isc-dhcp-client openssh-client openssh-server openssl podman qemu-utils socat strace tshark

BUILD_DEPENDENCIES := 'setuptools>=66' wheel 'cffi>=1.15' 'PyYAML>=6.0' 'structlog>=22.3' 'h11>=0.14' 'dnspython>=2.3'
SOURCES := pyproject.toml LICENSE README.md $(shell find plugin core packaging -name '*.py' -o -name '*.[ch]')
C_FILES := $(shell find core packaging tests -name '*.[ch]')
PYTHON_FOLDERS := plugin core packaging tests
CHECK := .venv/bin
FUNCTION_LINES := 70
FUNCTION_BRANCHES := 15
FILE_LINES := 600

SANITIZE := address,undefined
TESTS := $(wildcard tests/unit tests/script tests/contract tests/fuzz tests/guest)

.PHONY: help venv demo test all-but-guest lint format unit guest bench clean apt-build apt-guest apt-bench apt-test

help:
	@echo 'make demo              a real Linux guest (User-mode Linux) fetches and sends 200 MB through lockgate'
	@echo 'make demo GUEST=qemu   the same in QEMU; with DEBUG=1 the events stream by'
	@echo 'make test              everything that is checked: style, types, unit, script and guest tests'
	@echo 'make bench             lockgate beside passt, in turn, behind a real guest (3 hours; less: ONLY="ready udp" PAIRS=5)'
	@echo 'make bench GUEST=pasta   pasta beside another pasta, with a network namespace for a container; GUEST=podman: podman run'
	@echo 'make bench GUEST=gvproxy gvproxy beside another gvproxy, or a passt (PEER=), behind a machine as of podman machine'
	@echo 'make venv              lockgate and its commands in .venv/bin'
	@echo 'make lint|unit|guest|all-but-guest   parts of the test;  make format, make clean'

# ---- what it needs ----

apt-build:
	@packaging/apt-packages $(APT_BUILD)
apt-guest:
	@packaging/apt-packages $(APT_BUILD) $(APT_GUEST)
apt-bench:
	@packaging/apt-packages $(APT_BUILD) $(APT_GUEST) $(APT_BENCH)
apt-test:
	@packaging/apt-packages $(APT_BUILD) $(APT_TEST)

.venv/made .venv-asan/made: | apt-build
	@echo "making $(@D)"
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install -q --disable-pip-version-check $(BUILD_DEPENDENCIES)
	@touch $@

INSTALL = bin/pip install -q --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall .

.venv/installed: .venv/made $(SOURCES)
	@echo 'installing lockgate in .venv'
	@.venv/$(INSTALL)
	@touch $@

.venv-asan/installed: .venv-asan/made $(SOURCES)
	@echo 'installing lockgate, built with -fsanitize=$(SANITIZE), in .venv-asan'
	@LOCKGATE_SANITIZE=$(SANITIZE) .venv-asan/$(INSTALL)
	@touch $@

.venv/test-tools: .venv/made pyproject.toml
	@echo 'installing the test tools in .venv'
	@.venv/bin/pip install -q --disable-pip-version-check $$(.venv/bin/python packaging/dev_requirements.py)
	@touch $@

build/source: packaging/editable_wheel.py
	@PYTHONPATH=packaging .venv/bin/python -c \
		'import editable_wheel, pathlib; editable_wheel.link_source(pathlib.Path.cwd())'
	@touch $@

venv: .venv/installed

# ---- what it shows ----

demo: apt-guest .venv/installed
	@.venv/bin/python tests/guest/demo.py --guest $(GUEST) $(if $(DEBUG),--debug)

# PROCESSOR=0 binds the guest to one. By default beside the passt of this machine; PEER='passt --vhost-user -s {socket} -f -1' names another, PEER=none none.
# Read in the shell, not by make, so that a command line needs no quoting of its own.
BENCH_NEEDS_podman := .venv/test-tools
bench: apt-bench .venv/installed $(BENCH_NEEDS_$(GUEST))
	@PYTHONPATH=tests/guest:tests/contract .venv/bin/python tests/bench/bench.py --guest $(GUEST) --peer "$${PEER:-}" \
		--pairs "$${PAIRS:-20}" --seconds "$${DURATION:-3}" --idle-seconds "$${SILENCE:-10}" \
		--processor "$${PROCESSOR:-}" --only "$${ONLY:-}"

# ---- what it checks ----

lint: .venv/test-tools build/source
	@$(CHECK)/ruff check -q $(PYTHON_FOLDERS)
	@$(CHECK)/mypy --no-error-summary build/source/lockgate packaging tests/conftest.py
	@for folder in $(sort $(dir $(wildcard tests/*/*.py))); do MYPYPATH=$$folder:tests/bench:tests/guest:tests/contract $(CHECK)/mypy --no-error-summary $$folder; done
	@$(CHECK)/clang-format --dry-run --Werror $(C_FILES)
	@$(CHECK)/lizard -w -l c -L $(FUNCTION_LINES) -C $(FUNCTION_BRANCHES) core packaging tests
	@$(CHECK)/lizard -w -l python -L $(FUNCTION_LINES) -C 1000 $(PYTHON_FOLDERS)  # ruff counts their branches
	@wc -l $(C_FILES) $$(find $(PYTHON_FOLDERS) -name '*.py') | \
		awk '$$2 != "total" && $$1 > $(FILE_LINES) { print $$2 ": " $$1 " lines, at most $(FILE_LINES)"; bad = 1 } END { exit bad }'
	@twice=$$(basename -a tests/*/*.py | grep -v ^conftest | sort | uniq -d); test -z "$$twice" || { echo "$$twice: Python takes one file of a name"; exit 1; }
	@! grep -rnP '\bsleep *\((?!0\))' --include='*.py' --include='*.c' tests || { echo 'tests wait for events, they do not sleep'; exit 1; }
	@echo 'lint: style, types, formats and limits are as they should be'

format: .venv/test-tools
	$(CHECK)/ruff check -q --fix --select I $(PYTHON_FOLDERS)
	$(CHECK)/clang-format -i $(C_FILES)

# Guests mostly wait: what else there is runs beside them. More at a time would want more than two processors. Each half
# tells all when it has ended, and neither stops the other. First what a helper's memory is: another's shares it.
test: apt-test .venv/installed .venv/test-tools .venv-asan/installed lint
	@.venv/bin/python -m pytest -q -k at_rest tests/contract/test_processes_isolation.py
	@echo 'tests: with guests, and beside them all others; each half is told when it has ended'
	@$(MAKE) --no-print-directory -k -j2 --output-sync=target guest all-but-guest

all-but-guest: .venv/installed .venv/test-tools
	@.venv/bin/python -m pytest $(filter-out tests/guest,$(TESTS))

unit: .venv/installed .venv/test-tools
	@.venv/bin/python -m pytest $(filter-out tests/guest tests/contract,$(TESTS))

guest: apt-test .venv/installed .venv/test-tools .venv-asan/installed
	@.venv/bin/python -m pytest tests/guest

clean:
	rm -rf .venv .venv-asan build core/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(PYTHON_FOLDERS) -name __pycache__ -prune -exec rm -rf {} +
