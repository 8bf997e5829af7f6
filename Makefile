# The commands of this project. Each installs what it needs on Debian and Ubuntu; rustup (https://rustup.rs) comes first.

CARGO ?= $(or $(shell command -v cargo 2>/dev/null),$(wildcard $(HOME)/.cargo/bin/cargo),cargo)
# nextest runs tests side by side and stops what hangs; plain cargo runs the same tests without it.
TEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo "nextest run" || echo test)
# nextest shows what successful tests say only when asked.
SHOWN := $(if $(findstring nextest,$(TEST)),--no-capture)
TARGET := $(or $(CARGO_TARGET_DIR),target)
TRAMONTANE := $(TARGET)/release/tramontane

.PHONY: build test soak chaos lint proto vulkan cargo demo bench bench-serving bench-failover bench-loading bench-protection

build: cargo
	$(CARGO) build --release --locked -p tramontane

# The tests of whole clusters run the program, and a Python client against it. Generated inputs are the same each time; plain
# cargo and the soak draw new ones.
test: export PROPTEST_RNG_SEED ?= 1
test: vulkan build
	@tests/clients/install.sh $(TARGET)
	$(CARGO) $(TEST) --release --locked --workspace

# What takes minutes: 200 streams at once, generated requests to every route, processes that are killed, rolling restarts,
# 20,000 simulated clusters. docs/soak.md has results.
soak: vulkan build
	@tests/clients/install.sh $(TARGET) soak
	$(CARGO) $(TEST) --release --locked --workspace $(SHOWN) soak_ -- --ignored

# Kills processes of a live cluster under load for so many minutes, and compares every answer with an undisturbed run:
# make chaos MINUTES=5 SEED=7. docs/reliability.md says what it does.
chaos: export MINUTES := $(MINUTES)
chaos: export SEED := $(SEED)
chaos: vulkan build
	$(CARGO) test --release --locked --workspace --test main chaos_for_as_long -- --ignored --nocapture

lint: cargo
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

# A cluster of real processes on this machine, and its answer: make demo PROMPT="What is the capital of France?"
demo: export PROMPT := $(PROMPT)
demo: vulkan build
	@$(TRAMONTANE) demo $${PROMPT:+"$$PROMPT"}

# One worker against two stages, in one run.
bench: vulkan build
	@TRAMONTANE=$(TRAMONTANE) deploy/bench-stages.sh

# Running streams beside long prompts, and prompts that begin alike, with and without the prefix cache.
bench-serving: vulkan build
	@TRAMONTANE=$(TRAMONTANE) deploy/bench-serving.sh

# How long eight streams are silent when a worker is killed, with a standby and without.
bench-failover: vulkan build
	$(CARGO) test --release --locked --workspace --test main bench_silence -- --ignored --nocapture --test-threads 1

# How fast weights are loaded, against dd.
bench-loading: vulkan build
	@TRAMONTANE=$(TRAMONTANE) deploy/bench-loading.sh

# Tokens per second with journals, leases and fencing and without, in ten interleaved pairs.
bench-protection: vulkan build
	@TRAMONTANE=$(TRAMONTANE) CARGO="$(CARGO)" deploy/bench-protection.sh

# Writes proto/src/generated.rs anew from proto/cluster/v1/*.proto.
proto: cargo
	$(CARGO) run --release --locked -p tramontane-proto-codegen

vulkan:
	@deploy/install-vulkan.sh

cargo:
	@$(CARGO) --version >/dev/null 2>&1 || { echo "cargo is missing: install rustup from https://rustup.rs" >&2; exit 1; }
