# Penstock. "make help" lists what there is.

GO ?= go
.DEFAULT_GOAL := help

.PHONY: help run test test-deps lint bench torture fuzz fuzz-short filters build

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## the demo: a backend, the gateway, four filters, real messages; Ctrl-C ends it
	$(GO) run ./cmd/gateway demo

# The tests record which rows of docs/parity.md they prove. The directory is a new one each
# time, so that go test repeats no result from its cache that has a row to record.
test: test-deps filters ## install what the tests need (Debian packages, as root) and run all of them
	@set -e; record=$$(mktemp -d); trap 'rm -rf "$$record"' EXIT; \
	echo "$(GO) test -race -timeout 15m ./..."; \
	PARITY_DIR="$$record" $(GO) test -race -timeout 15m ./...; \
	$(GO) run ./internal/parity/check "$$record"
	@# What the race detector makes too slow is left out or smaller above.
	$(GO) test -count 1 -run '^(TestDiskFails|TestPowerCut|TestRestart)$$' ./store/embedded
	$(GO) test -count 1 -run '^TestSystems$$' ./internal/bench
	$(GO) test -count 1 -run '^(TestSwap|TestHooks)$$' ./cmd/gateway
	$(GO) test -count 1 -run '^(TestWorkloads|TestSpec|TestModule|TestOldGoGuest)$$' ./wasmhost/meter ./guest-sdk/tck/...

test-deps:
	bash internal/peers/install.sh

lint: ## go vet, staticcheck, gofmt, and the tests about the tree itself
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt'd:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) test ./internal

bench: filters ## all benchmarks; docs/bench.md has the standing figures and their commands
	$(GO) test -run '^$$' -bench . -benchmem ./...

KILLS ?= 300
torture: filters ## the long forms of tests that have a short one: 300 kills under load (KILLS=n), 1,000 filters swapped, random modules that are metered, disks that fail, a restart with a million messages
	PENSTOCK_TORTURE=$(KILLS) $(GO) test -count 1 -v -timeout 60m -run 'TestKilled|TestTerminated|TestSwap' ./cmd/gateway
	PENSTOCK_TORTURE=$(KILLS) $(GO) test -count 1 -v -timeout 60m -run 'TestEquivalent' ./wasmhost/meter
	PENSTOCK_TORTURE=$(KILLS) $(GO) test -count 1 -v -timeout 60m -run 'TestPowerCut|TestDiskFails|TestRestart' ./store/...

FUZZTIME ?= 1m
fuzz: filters ## run every fuzz target for a minute each (FUZZTIME=10s: shorter)
	@GO="$(GO)" bash internal/fuzz.sh $(FUZZTIME)

# All targets take minutes even at a second each, most of it for starting them. Their seeds and
# findings run with every go test; beyond that each commit runs a part.
FUZZPARTS ?= 8
fuzz-short: filters ## run some fuzz targets for seconds, others with each commit
	@GO="$(GO)" bash internal/fuzz.sh 2s $(FUZZPARTS)

filters: ## compile the filters that ship with the gateway
	$(GO) run ./filters/build

build: filters ## the program, as ./gateway-bin
	$(GO) build -trimpath -o gateway-bin ./cmd/gateway
