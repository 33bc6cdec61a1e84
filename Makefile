# make run    see a guest use a shared directory      make test    everything that CI runs (as root)
# make venv   .venv with the commands in .venv/bin    make check   lint, types and the tests that need no root
# make man    the manual pages, in build/man          make lock    renew requirements/dev.txt

# The distribution's own Python first: built with profile-guided optimisation, it starts and serves faster than most others.
# Looked for when it is used, since installing python3-venv may bring it.
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,/usr/bin/python3 python3,$(shell $(p) -c '$(ENOUGH)' 2>/dev/null && echo $(p))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/virtfs_proxy/__init__.py)

DEBS_venv := python3-venv
DEBS_man := pandoc
DEBS_run := busybox-static kmod qemu-system-x86
DEBS_test := acl attr git libcap2-bin man-db qemu-system-common sqlite3 strace $(DEBS_man) $(DEBS_run)

.PHONY: run root-run test check root lint venv man lock clean debs-venv debs-man debs-run debs-test
.NOTPARALLEL:
.DELETE_ON_ERROR:

run: export SHARED = $(EXPORT)
run: root-run debs-run venv
	$(BIN)/python tools/demo.py $${SHARED:+"$$SHARED"}

test: root debs-test lint
	$(BIN)/pytest $(PYTEST)

check: debs-test lint
	$(BIN)/pytest -m 'not root' $(PYTEST)

root-run:
	@[ "$$(id -u)" = 0 ] || { echo 'The helper starts as root, to give files to the users of the guest: "sudo make run".' >&2; exit 1; }

root:
	@[ "$$(id -u)" = 0 ] || { echo 'The tests mount, switch identities and boot guests: "sudo make test", or "make check" for what needs no root.' >&2; exit 1; }

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

venv: .venv/installed

.venv/locked: requirements/dev.txt | debs-venv
	@[ -n "$(PYTHON)" ] || { echo 'Python 3.11 or newer is needed: install one, or name it: make PYTHON=/path/to/python3' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --require-hashes -r requirements/dev.txt
	touch $@

# Editable, so that an edit is live at once; with the bytecode made here it starts as fast as a copy.
.venv/installed: .venv/locked pyproject.toml
	$(PIP) install --no-deps --no-build-isolation --no-index -e .
	$(BIN)/python -m compileall -q src
	touch $@

man: debs-man $(patsubst docs/man/%.md,build/man/%,$(wildcard docs/man/*.md))

build/man/%: docs/man/%.md src/virtfs_proxy/__init__.py
	@mkdir -p build/man
	pandoc --standalone --to man -M footer='virtfs-proxy $(VERSION)' -o $@ $<

# One lock for Python 3.11 to 3.14 on x86_64 and aarch64, with no registry's address in it.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --output-file requirements/dev.txt requirements/dev.in

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests tools bench -name __pycache__ -prune -exec rm -rf {} +

# `run` goes on where apt has no QEMU: it then shows the share without a guest.
debs-venv debs-man debs-run debs-test: debs-%:
	@command -v dpkg-query >/dev/null || { echo 'No Debian: this takes for granted what its packages $(DEBS_$*) bring.' >&2; exit 0; }; \
	missing=; for deb in $(DEBS_$*); do \
	    dpkg-query -W -f '$${db:Status-Status}\n' "$$deb" 2>/dev/null | grep -qx installed || missing="$$missing $$deb"; \
	done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" != 0 ]; then echo "Debian packages are missing; install them first:  sudo apt install$$missing" >&2; exit 1; \
	else apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing || [ $* = run ]; fi
