# The commands of this project. Each installs what it needs on Debian and Ubuntu.

CARGO ?= cargo
# nextest runs tests side by side and stops what hangs; plain cargo runs the same tests without it.
TEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo "nextest run" || echo test)

.PHONY: build test lint proto vulkan

build:
	$(CARGO) build --release --locked

test: vulkan
	$(CARGO) $(TEST) --release --locked --workspace

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

# Writes proto/src/generated.rs anew from proto/cluster/v1/*.proto.
proto:
	$(CARGO) run --release --locked -p tramontane-proto-codegen

vulkan:
	@deploy/install-vulkan.sh
