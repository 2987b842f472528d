# make install   the environment in .venv, from the lock file
# make demo      the main job on real text: train, generate, evaluate (4 minutes on 2 cores)
# make passkey   a memory that works: trains on the pass key task, prints what is recalled
# make recall    the same for associative recall
# make million   a real language model finds keys in 32,768 and 131,072 tokens, with a trained adapter
# make fuzz      random cases for two hours: operations, configs, damaged files (MINUTES=120)
# make test      the fast tests; make test-slow  the rest;  make check  lint, types, links of the pages, audit
# make test-extras  installs every extra into an environment of its own and runs its command
# make audit     compares the locked packages with the list of known weaknesses (needs a network); after it
#                make check does so too, where the list answers
# make format    fixes what ruff can fix
# make extra-tpu what an extra adds (tpu, gpu, gpu-plan, convert, hf, eval, serve, wandb, tensorboard, notebook,
#                reference, docs)
# make extra-beam  an environment of its own for Apache Beam, in .venv-beam
# make reference the API reference, from the docstrings, in build/reference/
# make lock      writes requirements.lock and locks/ anew (needs uv)
# make clean     removes .venv, .venv-beam, runs and what was built

MINUTES ?= 120
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
AUDIT := build/audit/bin
READY := .venv/ready
COMPILE := uv pip compile pyproject.toml --universal --fork-strategy fewest --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --quiet
EXTRAS = $(shell $(PYTHON) -c 'import tomllib; print(*(e for e in \
  tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"] if e != "dev"))')
LOCKED_ALL := --requirement requirements.lock --disable-pip --require-hashes --strict
# Beam needs other versions of these than requirements.lock has. All others stay as they are there.
NOT_BEAM := beartype|pillow|protobuf|pyarrow|python-dateutil
# What requirements.lock installs on every system but Windows: no other lock repeats it.
LOCKED = $(shell sed -nE "/sys_platform == 'win32'/d; s/^([A-Za-z0-9._-]+)(\[.*\])?==.*/--no-emit-package \1/p" requirements.lock)

.PHONY: install extra-beam demo passkey recall million test test-slow test-extras check audit audit-here format fuzz reference pictures \
  lock lock-extras clean

install: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	@echo "installing the packages of requirements.lock (about a minute)"
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

extra-%: locks/%.lock $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock -r $<  # both are whole

extra-beam: locks/beam.lock pyproject.toml
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install --quiet --require-hashes -r $<
	.venv-beam/bin/python -m pip install --quiet --no-build-isolation --no-deps -e .

demo: $(READY)
	$(BIN)/python train.py --config=configs/demo.py --workdir=runs/demo
	$(BIN)/infini-jax generate --workdir=runs/demo --prompt-document=test:0 --tokens=120
	$(BIN)/python eval.py --workdir=runs/demo

passkey: $(READY)
	$(BIN)/python train.py --config=configs/passkey_tiny.py --workdir=runs/passkey
	$(BIN)/python eval.py --workdir=runs/passkey

recall: $(READY)
	$(BIN)/python train.py --config=configs/recall_tiny.py --workdir=runs/recall
	$(BIN)/python eval.py --workdir=runs/recall

million: $(READY)
	$(BIN)/python benchmarks/million.py --workdir=runs/million

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=15 -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --minutes=$(MINUTES)

audit: $(READY)
	$(PYTHON) -m venv $(AUDIT:/bin=)
	$(AUDIT)/python -m pip install --quiet pip-audit
	$(AUDIT)/pip-audit $(LOCKED_ALL)

# A failure that names no weakness, such as a list that does not answer, does not fail the check.
audit-here:
	@if [ ! -x $(AUDIT)/pip-audit ]; then \
	  echo "not audited: make audit has not made its environment here"; \
	elif said=$$(timeout 60 $(AUDIT)/pip-audit $(LOCKED_ALL) --timeout 5 2>&1); then \
	  echo "$$said"; \
	elif echo "$$said" | grep -qE "^Found [0-9]+ known vulnerabilit"; then \
	  echo "$$said"; exit 1; \
	else \
	  echo "not audited: the list of known weaknesses does not answer"; \
	fi

test-extras: $(READY)
	INFINI_JAX_TEST_EXTRAS=1 $(BIN)/python -m pytest -q -m slow tests/test_extras.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/links.py
	@$(MAKE) --no-print-directory audit-here

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: extra-docs
	rm -rf build/reference
	$(BIN)/python docs/reference.py

pictures: $(READY)
	$(BIN)/python docs/paths.py
	$(BIN)/python docs/pictures.py

lock:
	$(COMPILE) --extra dev --output-file requirements.lock
	$(MAKE) lock-extras

# What each extra adds to requirements.lock, in the versions that go with it.
lock-extras:
	@mkdir -p locks
	@for extra in $(filter-out beam,$(EXTRAS)); do \
	  echo "locks/$$extra.lock"; \
	  $(COMPILE) --extra $$extra --constraint requirements.lock $(LOCKED) --no-header \
	    --output-file locks/$$extra.lock || exit 1; \
	done
	@echo locks/beam.lock
	@mkdir -p build
	@sed -nE 's/^([^ ]+==[^\]+).*/\1/p' requirements.lock | grep -vE '^($(NOT_BEAM))==' >build/beam.txt
	@$(COMPILE) --extra dev --extra beam --constraint build/beam.txt --no-header --output-file locks/beam.lock

clean:
	rm -rf .venv .venv-beam runs build dist *.egg-info
