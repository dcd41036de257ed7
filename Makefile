# Every target installs what it needs into .venv first, which is quick once it is installed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# Programs that tests compare with or drive, and their Debian packages.
PROGRAMS := chromium:chromium flac:flac wavpack:wavpack cjxl:libjxl-tools cwebp:webp zstd:zstd brotli:brotli
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::http::Timeout=20

.PHONY: demo small test test-long lint docs setup clean

setup: $(STAMP)
	@missing=; \
	for pair in $(PROGRAMS); do \
	  command -v $${pair%:*} > /dev/null || missing="$$missing $${pair#*:}"; \
	done; \
	if [ "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "installing$$missing"; \
	  ($(APT) update && $(APT) install --yes --no-install-recommends $$missing) > /dev/null 2>&1 \
	    && missing=; \
	fi; \
	if [ "$$missing" ]; then \
	  echo "tests that drive missing programs will skip; to bring them: apt-get install$$missing"; \
	fi

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	$(BIN)/python -m bytelm.tools.compile_kernels
	touch $@

demo: $(STAMP)
	$(BIN)/bytelm demo

# The bundled model anew, an hour on two cores, from CORPORA: a folder with text_sotu, demo,
# image_emoji64 and audio_speech (examples/models/small/README.md).
small: $(STAMP)
	$(BIN)/bytelm prepare $(CORPORA)/text_sotu --out sets/text_sotu
	$(BIN)/bytelm prepare $(CORPORA)/demo --exclude manifest.json --out sets/demo
	$(BIN)/bytelm prepare $(CORPORA)/image_emoji64 --exclude captions.json --out sets/emoji
	$(BIN)/bytelm prepare $(CORPORA)/image_emoji64 --captions $(CORPORA)/image_emoji64/captions.json \
	  --out sets/emoji_captioned
	$(BIN)/bytelm prepare $(CORPORA)/audio_speech --exclude captions.json --out sets/speech
	$(BIN)/bytelm train examples/models/small/train.yaml --out runs/small
	$(BIN)/bytelm export runs/small --out models/small --dtype bf16
	$(BIN)/bytelm calibrate models/small --data sets/text_sotu sets/emoji sets/speech
	cp models/small/model.safetensors models/small/config.json examples/models/small/

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
