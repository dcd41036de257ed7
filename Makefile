# Every target installs what it needs into .venv first, which is quick once it is installed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test test-long lint docs setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	touch $@

demo: $(STAMP)
	$(BIN)/bytelm demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/; a broken link is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# One thread in each process: on two cores, two processes of two threads wait for each other most of
# the time.
test: lint docs
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not long" -n 2 --dist loadfile

test-long: lint
	$(BIN)/pytest

clean:
	rm -rf .venv build dist *.egg-info demo site
