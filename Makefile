# The commands of this project; `make help` lists them. The longer ones are in scripts/.

PROFILE ?= release
CARGO_TARGET_DIR ?= target
TARGET ?= request
SECONDS ?= 60
export CARGO_TARGET_DIR

.DEFAULT_GOAL := help

.PHONY: run pgo test vectors trials fuzz lint bench bench-count bench-growth bench-load help

run: ## build, make throw-away keys and tokens, serve the demo on 127.0.0.1:8080 (PROFILE=dev builds faster)
	@scripts/prepare
	@cargo build --locked --profile $(PROFILE) --bin edgeward
	@scripts/demo "$(CARGO_TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/edgeward"

pgo: ## build for what the gateway does most, by a profile of it: 3 to 16% less CPU per request, and half an hour
	@scripts/prepare
	@scripts/pgo

test: ## run all tests; none may be skipped
	@scripts/prepare redis-server
	@scripts/test

vectors: ## run the test vectors of others (EDGEWARD_SUITES names their folder)
	@scripts/vectors

trials: ## try the binary against software of others: an OpenID provider, nginx, gRPC, wrk (TRIALS_SECONDS=60)
	@scripts/prepare
	@tests/trials/run

fuzz: ## feed a parser random bytes (TARGET=jwt SECONDS=60); fuzz/README.md says which there are
	@mkdir -p fuzz/corpus/$(TARGET)
	cargo fuzz run -s none $(TARGET) fuzz/corpus/$(TARGET) fuzz/seeds/$(TARGET) -- -max_total_time=$(SECONDS) -timeout=10

lint: ## check format, lints, docs and dependencies
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib
	cargo deny --log-level error check bans licenses sources

bench: ## measure the decision path, alone and on threads
	cargo bench --locked

bench-count: ## count its instructions, atomic updates and allocations, and hold them against docs/performance.md
	@scripts/prepare valgrind python3
	@scripts/bench-count

bench-growth: ## measure what grows with routes, keys, networks and tokens: look-ups, start, reload, memory
	@cargo bench --locked --bench growth

bench-load: SECONDS = 4
bench-load: ## compare with HAProxy, nginx, Envoy and bare Pingora (ONLY=jwt_rs256 ROUNDS=5 SECONDS=4); benches/load/README.md
	@scripts/prepare
	@LOAD_SECONDS=$(SECONDS) benches/load/run

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
