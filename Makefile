# `make help` prints what follows a target's `##`, and the lines that start with `#:`.

STRATEGY ?=
MODEL ?=
DATASET ?=
EXPERIMENT ?=
TRIALS ?=
DRY_RUN ?=
COMPARISON ?=
TEXT ?=
INPUT ?=
MODEL_PATH ?=
FORMAT ?= onnx
ARGS ?=
PORT ?= 5000
PYTHON ?= python3

#: STRATEGY=lora     what trains: a name from conf/strategy/; for compare several, lora,full, or all that fit the model
#: MODEL=minilm      what is trained: a name from conf/model/
#: DATASET=...       what it is trained on: a name from conf/dataset/
#: EXPERIMENT=...    a recipe from conf/experiment/, which sets several of these at once
#: TRIALS=20         trials of each study (study.n_trials)
#: DRY_RUN=1         say what would run and how long, train nothing
#: COMPARISON=...    for report: which comparison (default: the newest); a,b,c or all for one summary of several
#: TEXT="..."        for predict: a text
#: INPUT=...         for predict and export: a table or text file, an image, or a folder of images
#: MODEL_PATH=...    for predict, serve and export: a saved model (default: what the newest report chose)
#: FORMAT=onnx       for export: onnx or torch_export
#: ARGS="..."        further key=value overrides, which come last and win; of predict, serve, export and test, flags
#: PORT=5000         for ui: where it listens
#: PYTHON=python3    for setup: the Python that .venv is made with, 3.11 to 3.13

VENV := .venv
STAMP := $(VENV)/.stamp
RUN := $(VENV)/bin/python

# An empty variable adds nothing, so that the configuration's own default holds.
override_of = $(if $(strip $($(1))),$(2)=$(strip $($(1))))
OVERRIDES = $(strip $(call override_of,STRATEGY,strategy) $(call override_of,MODEL,model) \
	$(call override_of,DATASET,dataset) $(call override_of,EXPERIMENT,experiment) \
	$(call override_of,TRIALS,study.n_trials) $(if $(filter-out 0 false no,$(DRY_RUN)),dry_run=true) $(ARGS))

# Written small, as Hydra writes its groups, a variable would be ignored.
$(foreach name,strategy model dataset experiment trials dry_run comparison args,$(if $(filter command,$(origin $(name))),\
	$(error $(name)=$($(name)): write the variable in capitals, or pass a key as ARGS="$(name)=...")))

# Another Python is looked for only where none was named.
CANDIDATES = $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11)

# Texts and paths reach the shell as they are, quotes and dollars too: through the environment.
override TEXT := $(value TEXT)
override INPUT := $(value INPUT)
override MODEL_PATH := $(value MODEL_PATH)
export TEXT INPUT MODEL_PATH
flag_of = $(if $($(1)),$(2) "$$$(1)")

export MLFLOW_DISABLE_TELEMETRY := true

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help setup sweep compare report predict serve export ui doctor test bench examples docs lint clean

help: ## print this text
	@echo 'Thawline: how much of a pretrained model to train, on your data.'
	@echo; echo 'Targets (each builds .venv first where it needs it):'
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s  %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo; echo 'Variables:'
	@sed -n 's/^#: /  /p' $(firstword $(MAKEFILE_LIST))
	@echo; echo 'Examples:'
	@echo '  make sweep STRATEGY=lora TRIALS=20'
	@echo '  make compare STRATEGY=frozen,lora,full TRIALS=5 ARGS="dataset.train_size=500"'

setup: $(STAMP) ## build .venv from constraints.txt; does nothing when it is up to date

# The stamp goes first and comes back last: what is interrupted in between is built anew.
$(STAMP): pyproject.toml constraints.txt
	@found=; for python in $(CANDIDATES); do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "Thawline needs Python 3.11, 3.12 or 3.13; $(PYTHON) is" \
	        "$$($(PYTHON) --version 2>&1 | head -n 1). Name one: make setup PYTHON=python3.12" >&2; exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$found lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; \
	fi; \
	if [ -f $@ ]; then rm -f $@; echo 'Updating .venv ...'; else \
	    echo "Building .venv with $$($$found --version): some minutes the first time ..."; \
	    $$found -m venv --clear $(VENV) || exit 1; \
	fi
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@# In parallel, and even where PYTHONDONTWRITEBYTECODE is set: without it each command imports for 20 s.
	@$(RUN) -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@touch $@; echo '.venv is ready.'

sweep: $(STAMP) ## one study, its finals and its report: make sweep STRATEGY=lora
	$(RUN) -m sweeper sweep $(OVERRIDES)

compare: $(STAMP) ## the same for several strategies, with one report: make compare STRATEGY=frozen,lora
	$(RUN) -m sweeper compare $(OVERRIDES)

report: $(STAMP) ## write a report again from what MLflow holds; trains nothing
	$(RUN) -m sweeper report $(strip $(call override_of,COMPARISON,report.comparison) $(OVERRIDES))

doctor: $(STAMP) ## check this machine and its environment; says how to mend what is wrong
	@$(RUN) -m sweeper doctor

predict: $(STAMP) ## labels and calibrated scores: make predict TEXT="a triumph", or INPUT=reviews.csv
	@$(RUN) -m sweeper predict $(strip $(call flag_of,INPUT,--input) $(call flag_of,MODEL_PATH,--model) $(ARGS) \
	    $(call flag_of,TEXT,--))

serve: $(STAMP) ## answer requests for predictions on this machine: MLflow's scoring server, port 5001
	@$(RUN) -m sweeper serve $(strip $(call flag_of,MODEL_PATH,--model) $(ARGS))

export: $(STAMP) ## write a saved model as ONNX, verified and timed: make export FORMAT=onnx
	@$(RUN) -m sweeper export $(strip --format $(FORMAT) $(call flag_of,INPUT,--input) \
	    $(call flag_of,MODEL_PATH,--model) $(ARGS))

ui: $(STAMP) ## browse the runs in the MLflow UI, on this machine only
	@$(RUN) -m sweeper ui --port $(PORT)

test: $(STAMP) ## run the tests, without those marked slow or gpu
	@$(RUN) -m pytest $(ARGS)

bench: $(STAMP) ## time a sweep against plain scripts: make bench, or make bench ARGS="--size full"
	@$(RUN) -m benchmarks $(ARGS)

examples: $(STAMP) ## run the sweeps of docs/reports/ and replace their reports: make examples ARGS=text
	@$(RUN) -m benchmarks.examples $(ARGS)

docs: $(STAMP) ## build the documentation into site/; fails on a broken link
	@$(RUN) docs/generate.py
	@$(RUN) docs/links.py
	@$(RUN) -m zensical build --clean --strict
	@echo 'Open site/index.html; with search: $(RUN) -m http.server --bind 127.0.0.1 --directory site 8000'

lint: $(STAMP) ## check style, format and types; changes nothing
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

clean: ## remove caches and build products; never outputs/ or .venv
	@rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './outputs/*' -prune -exec rm -rf {} +
	@echo 'Removed caches and build products; outputs/ and .venv are untouched.'
