# nemo-lifecycle: every verb is one line over `lifecycle` (python -m pipeline).
#
#   make run                                   the whole chain of recipes/llama-tiny.yaml
#   make train RECIPE=llama-tiny SET="train.peft=lora"
#   make plan | status | report | verify        RECIPE=...   what would run; what is; one HTML page; rot
#   make explain KEY=train.lr   make diff A=... B=...   make trace TARGET=127.0.0.1:8000   make gc
#   make run SITE=slurm OPTIONS=--dry-run       the jobs that a cluster would get, word for word
#   make test                                  lint, unit tests, faults, stage tests, one end-to-end run
#
# The environments are made from configs/toolchains/*.lock on first use, and never again
# while the locks stay as they are.

# Make's command line sets these, and nothing else does: what a shell exports under such a name (an API's KEY, a compiler's
# OPTIONS) was meant for another program.  Of the environment LIFECYCLE_VENVS counts: the folder for the environments.
RECIPE  := llama-tiny
SITE    := local
SET     :=
KEY     :=# for explain: one setting, e.g. KEY=train.lr
TARGET   = $(RECIPE)# for trace: an address, a recipe, an artifact, a file
OPTIONS :=# any options of the verb, e.g. OPTIONS=--strict (lifecycle VERB --help has them)
A       :=# for diff: two recipes, artifacts or folders
B       :=
ASK     :=# for scale: its question, e.g. ASK="train --flops 1e21"
PYTHON  := $(shell command -v python3.11 || command -v python3)
VENVS   := $(or $(value LIFECYCLE_VENVS),.venvs)

# A value as one word of the shell, whatever is in it.
quoted   = '$(subst ','\'',$(1))'
# A target of make is a word without blanks, and some characters have a meaning of their own in it.
ifneq ($(shell printf %s $(call quoted,$(VENVS)) | LC_ALL=C tr -d 'A-Za-z0-9/._+@,\200-\377-'),)
$(error LIFECYCLE_VENVS is "$(VENVS)": make can use a path of letters, digits and / . _ + @ , - alone; name another folder, \
or a link to this one)
endif

export SET
STAGES := curate pretrain train reward sample align evaluate export deploy
STAMP  := .lock-digest
CONTROLLER := $(VENVS)/controller/$(STAMP)
CORE       := $(VENVS)/core/$(STAMP)
SERVING    := $(VENVS)/serving/$(STAMP)
GATEWAY    := $(VENVS)/gateway/$(STAMP)
LAUNCH     := $(VENVS)/launch/$(STAMP)
TRACKING   := $(VENVS)/tracking/$(STAMP)
TRACKERS   := $(if $(findstring tracking.,$(SET)),$(TRACKING))
NEMO       := $(VENVS)/nemo/$(STAMP)
DEV        := $(VENVS)/dev/$(STAMP)
CHARTS     := $(VENVS)/charts/$(STAMP)
DEBIAN     := $(VENVS)/debian/usr/bin/promtool
BENCH      := $(VENVS)/bench/$(STAMP)
RIVALS     := $(VENVS)/bench-serving/$(STAMP)
SERVED     := $(CONTROLLER) $(CORE) $(SERVING) $(GATEWAY)
PIPELINE    = $(VENVS)/controller/bin/python -m pipeline
RESOLVED    = --site $(call quoted,$(SITE)) --set "$$SET" $(call quoted,$(RECIPE))
LIFECYCLE   = $(PIPELINE) $(1) $(OPTIONS) $(RESOLVED)
# A site whose steps are jobs of a cluster needs NeMo-Run here.  Its kind says so, whatever its file is called.
AT_SITE     = $(if $(filter-out local,$(SITE)),kind=$$($(PIPELINE) explain $(RESOLVED) site.kind) || exit; \
	[ "$${kind#"site.kind = 'local':"}" != "$$kind" ] || $(call CREATE,launch) || exit;)
CREATE      = $(call quoted,$(PYTHON)) -m pipeline.toolchains create $(1)
ENVIRONMENTS := controller core serving gateway launch tracking nemo dev charts bench bench-datatrove bench-data-juicer \
	bench-serving
VERBS  := plan status report verify chat stop cancel

.PHONY: help run $(STAGES) $(VERBS) explain rollback fetch diff trace gc scale env clean-env test lint test-unit test-faults-short \
	test-faults test-stages test-gateway test-launch test-deploy test-e2e test-full slurm compose debian-tools bench-controller \
	bench-curation bench-training bench-llama-server bench-serving bench-overhead bench-serve soak locks

help:
	@sed -n '2,12s/^# \{0,1\}//p' Makefile
	@echo "verbs: run $(STAGES) $(VERBS) explain rollback fetch diff trace gc scale"
	@echo "and: test test-faults test-full lint env clean-env soak"
	@echo "     bench-controller bench-curation bench-training bench-serving bench-overhead bench-serve"

run: $(CONTROLLER) $(CORE) $(SERVING) $(GATEWAY) $(TRACKERS)
	@$(AT_SITE) $(call LIFECYCLE,run)

curate pretrain train reward sample align evaluate: $(CONTROLLER) $(CORE) $(TRACKERS)
	@$(AT_SITE) $(call LIFECYCLE,$@)

export: $(CONTROLLER) $(CORE) $(SERVING) $(TRACKERS)
	@$(AT_SITE) $(call LIFECYCLE,$@)

deploy: $(CONTROLLER) $(CORE) $(SERVING) $(GATEWAY) $(TRACKERS)
	@$(AT_SITE) $(call LIFECYCLE,$@)

rollback: $(CONTROLLER) $(SERVING) $(GATEWAY)
	@$(call LIFECYCLE,$@)

$(VERBS): $(CONTROLLER)
	@$(call LIFECYCLE,$@)

explain: $(CONTROLLER)
	@$(call LIFECYCLE,$@) $(if $(KEY),$(call quoted,$(KEY)))

fetch: $(CONTROLLER) $(CORE)
	@$(call LIFECYCLE,$@)

diff: $(CONTROLLER)
	@$(PIPELINE) diff $(OPTIONS) $(if $(A),$(call quoted,$(A))) $(if $(B),$(call quoted,$(B)))

trace: $(CONTROLLER)
	@$(PIPELINE) trace $(OPTIONS) $(call quoted,$(TARGET))

gc: $(CONTROLLER)
	@$(PIPELINE) gc $(OPTIONS)

# Questions that come before a recipe; without one, which there are.
scale: $(CONTROLLER)
	@$(PIPELINE) scale $(or $(ASK),--help)

# ---------------------------------------------------------------------- environments

env: $(CONTROLLER) $(CORE) $(SERVING) $(GATEWAY)

$(VENVS)/%/$(STAMP): configs/toolchains/%.lock
	@$(call CREATE,$*)
	@touch $@

env-%: $(VENVS)/%/$(STAMP)
	@:

clean-env:
	rm -rf $(addprefix $(VENVS)/,$(ENVIRONMENTS) debian bench-llama-server)

# Write the locks anew from the .in files, after changing what is wanted.
locks:
	@$(call quoted,$(PYTHON)) -m pipeline.toolchains lock $(ENVIRONMENTS) build torch-cuda

# ----------------------------------------------------------------------------- tests

test: lint test-unit test-faults-short test-stages test-gateway test-launch test-deploy test-e2e

lint: $(DEV)
	@$(VENVS)/dev/bin/python -m ruff check pipeline deploy tests benchmarks
	@$(VENVS)/dev/bin/python -m ruff format --check pipeline deploy tests benchmarks
	@$(VENVS)/dev/bin/python -m mypy

test-unit: $(DEV) $(CONTROLLER)
	$(VENVS)/dev/bin/python -m pytest tests/unit

# Kills, full disks, races, pauses, rot: a sample of the places where they can happen ...
test-faults-short: $(DEV) $(CONTROLLER)
	$(VENVS)/dev/bin/python -m pytest tests/faults -m "not full"

# ... and every place, with two hundred kills of real training besides; over an hour.
test-faults: $(DEV) $(CONTROLLER) $(CORE) $(SERVING)
	FAULTS=full $(VENVS)/dev/bin/python -m pytest tests/faults

test-stages: $(CORE) $(SERVING) $(GATEWAY) $(NEMO)
	$(VENVS)/core/bin/python -m pytest tests/stages/core -n 2 --dist loadfile
	$(VENVS)/serving/bin/python -m pytest tests/stages/serving tests/contract
	$(VENVS)/nemo/bin/python -m pytest tests/stages/nemo -W ignore

test-gateway: $(SERVING) $(GATEWAY)
	$(VENVS)/gateway/bin/python -m pytest tests/gateway

# Chains through NeMo-Run on a real Slurm that the tests start and stop on this machine.
test-launch: $(CONTROLLER) $(CORE) $(LAUNCH) slurm
	$(VENVS)/launch/bin/python -m pytest tests/launch

# Slurm for those tests, where it is not installed: Debian's or Ubuntu's packages, as root.
slurm:
	@for program in munged slurmctld slurmd sbatch; do command -v $$program >/dev/null || missing=1; done; \
	[ -z "$$missing" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
		--no-install-recommends slurmctld slurmd slurm-client munge >/dev/null; } || \
	{ echo "Slurm could not be installed; test-launch needs slurmctld, slurmd, slurm-client and munge" >&2; exit 1; }

# What is deployed on GPUs, by Helm's library, published schemas, docker-compose, promtool, Slurm,
# Triton and the gateway; no GPU.
test-deploy: $(CHARTS) $(SERVING) $(GATEWAY) slurm compose debian-tools
	$(VENVS)/charts/bin/python -m pytest tests/deploy

# docker-compose without Docker: Debian's or Ubuntu's package, as root.
compose:
	@command -v docker-compose >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install \
		-qq -y --no-install-recommends docker-compose >/dev/null; } || \
	{ echo "docker-compose could not be installed; test-deploy needs it" >&2; exit 1; }

# promtool and an ssh server out of Debian's or Ubuntu's packages, which are not installed: that would start servers.
debian-tools: $(DEBIAN)

$(DEBIAN):
	@mkdir -p $(VENVS)/debian && cd $(VENVS)/debian && apt-get update -qq && \
	apt-get download -qq prometheus openssh-server libwrap0 && \
	for package in *.deb; do dpkg-deb --extract $$package . || exit 1; done && rm *.deb usr/bin/prometheus || \
	{ echo "Debian's packages prometheus and openssh-server could not be fetched; test-deploy needs them" >&2; exit 1; }

test-e2e: $(DEV) $(CONTROLLER) $(CORE) $(SERVING) $(GATEWAY) $(TRACKING)
	$(VENVS)/dev/bin/python -m pytest tests/e2e -m "not full"

# The long suite: the full recipe, its targets, and a kill in the middle.
test-full: $(DEV) $(CONTROLLER) $(CORE) $(SERVING) $(GATEWAY)
	$(VENVS)/dev/bin/python -m pytest tests/e2e -m full

# ------------------------------------------------------------------------ benchmarks

# The controller beside DVC and Snakemake; writes its table into benchmarks/README.md.
bench-controller: $(CONTROLLER) $(CORE) $(SERVING) $(BENCH)
	$(VENVS)/controller/bin/python -m benchmarks.controller --write

# Curation beside NeMo Curator's executor, datatrove and data-juicer.
bench-curation: $(CONTROLLER) $(CORE) $(VENVS)/bench-datatrove/$(STAMP) $(VENVS)/bench-data-juicer/$(STAMP)
	$(VENVS)/controller/bin/python -m benchmarks.curation --write

# Fine-tuning and DPO beside TRL's trainers and plain loops; benchmarks/training_gpu.py is for a GPU.
bench-training: $(CONTROLLER) $(CORE)
	$(VENVS)/controller/bin/python -m benchmarks.training --write

# Serving beside Transformers' servers, and llama.cpp's where bench-llama-server has built it.
bench-serving: $(SERVED) $(RIVALS)
	$(VENVS)/controller/bin/python -m benchmarks.serving --write

# What the gateway adds to the first token, behind larger models.
bench-overhead: $(SERVED)
	$(VENVS)/controller/bin/python -m benchmarks.overhead --write

# llama.cpp's server, from source: a C++ compiler, and six minutes on 2 cores.
bench-llama-server: $(CONTROLLER) $(RIVALS)
	$(VENVS)/controller/bin/python -m benchmarks.servers.llama_cpp

# aiperf against the gateway at concurrency 1, 4, 16 and 64.
bench-serve: $(SERVED) $(RIVALS)
	$(VENVS)/controller/bin/python -m benchmarks.aiperf --write

# Mixed load for half an hour: no failed answer, flat memory.
soak: $(SERVED)
	$(VENVS)/gateway/bin/python -m benchmarks.soak --write
