# nemo-lifecycle: every verb is one line over `lifecycle` (python -m pipeline).
#
#   make run                                   the whole chain of recipes/llama-tiny.yaml
#   make train RECIPE=llama-tiny SET="train.peft=lora"
#   make test                                  lint, unit tests, stage tests, one end-to-end run
#
# The environments are made from configs/toolchains/*.lock on first use, and never again
# while the locks stay as they are.

RECIPE ?= llama-tiny
SITE   ?= local
SET    ?=
KEY    ?=# for explain: one setting, e.g. KEY=train.lr
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENVS  := $(or $(LIFECYCLE_VENVS),.venvs)

export SET
STAGES := curate pretrain train align evaluate export deploy
STAMP  := .lock-digest
CONTROLLER := $(VENVS)/controller/$(STAMP)
CORE       := $(VENVS)/core/$(STAMP)
SERVING    := $(VENVS)/serving/$(STAMP)
DEV        := $(VENVS)/dev/$(STAMP)
LIFECYCLE   = $(VENVS)/controller/bin/python -m pipeline $(1) --site $(SITE) --set "$$SET" $(RECIPE) $(KEY)

.PHONY: help run $(STAGES) plan status explain chat stop env clean-env test lint test-unit test-stages test-e2e test-full locks

help:
	@sed -n '2,9s/^# \{0,1\}//p' Makefile
	@echo "verbs: run $(STAGES) plan status explain chat stop test lint env clean-env"

run: $(CONTROLLER) $(CORE) $(SERVING)
	@$(call LIFECYCLE,run)

curate pretrain train align evaluate: $(CONTROLLER) $(CORE)
	@$(call LIFECYCLE,$@)

deploy export: $(CONTROLLER) $(CORE) $(SERVING)
	@$(call LIFECYCLE,$@)

plan status explain chat stop: $(CONTROLLER)
	@$(call LIFECYCLE,$@)

# ---------------------------------------------------------------------- environments

env: $(CONTROLLER) $(CORE) $(SERVING)

$(VENVS)/%/$(STAMP): configs/toolchains/%.lock
	@$(PYTHON) -m pipeline.toolchains create $*
	@touch $@

env-%: $(VENVS)/%/$(STAMP)
	@:

clean-env:
	rm -rf $(addprefix $(VENVS)/,controller core serving dev)

# Write the locks anew from the .in files, after changing what is wanted.
locks:
	@$(PYTHON) -m pipeline.toolchains lock controller core serving dev

# ----------------------------------------------------------------------------- tests

test: lint test-unit test-stages test-e2e

lint: $(DEV)
	@$(VENVS)/dev/bin/python -m ruff check pipeline tests
	@$(VENVS)/dev/bin/python -m ruff format --check pipeline tests
	@$(VENVS)/dev/bin/python -m mypy

test-unit: $(DEV)
	$(VENVS)/dev/bin/python -m pytest tests/unit

test-stages: $(CORE) $(SERVING)
	$(VENVS)/core/bin/python -m pytest tests/stages/core
	$(VENVS)/serving/bin/python -m pytest tests/stages/serving

test-e2e: $(DEV) $(CONTROLLER) $(CORE) $(SERVING)
	$(VENVS)/dev/bin/python -m pytest tests/e2e -m "not full"

# The long suite: the full recipe, its targets, and a kill in the middle.
test-full: $(DEV) $(CONTROLLER) $(CORE) $(SERVING)
	$(VENVS)/dev/bin/python -m pytest tests/e2e -m full
