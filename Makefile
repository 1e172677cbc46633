# CProxy. `make help` explains every target.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null)
FUZZTIME ?= 10s

GOLANGCI_LINT_VERSION  := v2.15.0
PROTOC_GEN_GO_VERSION  := v1.36.12

TOOLS         := $(CURDIR)/.tools
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION)
PROTOC_GEN_GO := $(TOOLS)/protoc-gen-go-$(PROTOC_GEN_GO_VERSION)

MODULE  := github.com/cproxy/cproxy
LDFLAGS := -s -w -X main.version=$(VERSION)
PROTOS  := $(shell find . -name '*.proto' -not -path './.tools/*' | sed 's|^\./||' | LC_ALL=C sort)

.PHONY: help
help: ## Explain every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Settings: FUZZTIME=$(FUZZTIME) (per fuzz target), VERSION=$(VERSION) (of the binaries), DEMO_ONCE=1 (demo ends after its proof)'
	@echo 'Settings of bench: BENCH_ROUNDS=5, BENCH_TIME=1.5s (of each load), BENCH_LIMIT=14m, BENCH_QUICK=1 (a minute, to try it), BENCH_OUT=docs, BENCH_INSTALL=0 (no packages), BENCH_FRP=DIR (with frps and frpc)'

.PHONY: build
build: ## Build the static binaries into ./bin
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: test
test: ## Run every test with the race detector, shuffled (needs a C compiler)
	@command -v "$$(go env CC)" >/dev/null || { \
	  echo 'make test: the race detector needs a C compiler; install one (Debian, Ubuntu: apt install gcc libc6-dev)' >&2; exit 1; }
	CGO_ENABLED=1 go test -race -shuffle=on -timeout=10m ./...

.PHONY: soak
soak: ## Run the long tests of the engine in full (half an hour)
	RELAY_SOAK=1 go test -timeout=60m -v -run '^Test(StreamsOverFewConns|Hostile(Client|Server)BesideHonest|Churn|HandOverUnderTraffic)$$' ./core/relay

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Run go vet and golangci-lint, formatting included
	go vet ./...
	$(GOLANGCI_LINT) run ./...

.PHONY: generate
generate: $(PROTOC_GEN_GO) need-protoc ## Write the protobuf code anew
	$(call protoc,.)

.PHONY: generate-check
generate-check: $(PROTOC_GEN_GO) need-protoc ## Fail if the protobuf code is not what generate writes
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT; stale=0; \
	$(call protoc,"$$dir"); \
	while read -r file; do \
	  diff -u -I '^//[[:space:]]*protoc ' "$$file" "$$dir/$$file" || stale=1; \
	done < <(cd "$$dir" && find . -name '*.pb.go' | LC_ALL=C sort); \
	if [ $$stale = 1 ]; then echo 'make generate-check: the generated code is stale; run `make generate`' >&2; exit 1; fi; \
	echo 'generated code is up to date'

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME in turn
	@while IFS=: read -r file target; do \
	  echo "== $$(dirname "$$file") $$target"; \
	  go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) "./$$(dirname "$$file")" </dev/null; \
	done < <(grep -roE --include='*_test.go' --exclude-dir=.tools '^func Fuzz[A-Za-z0-9_]+' . | sed 's|^\./||; s|:func |:|' | LC_ALL=C sort)

.PHONY: demo
demo: ## Run server, client and a small web page here until Ctrl-C
	@./test/demo/run.sh

.PHONY: bench
bench: ## Measure against other forwarders, write docs/benchmarks.md
	go run ./test/bench

.PHONY: tools
tools: $(GOLANGCI_LINT) $(PROTOC_GEN_GO) ## Install the pinned tools into ./.tools

.PHONY: clean
clean: ## Remove what was built, the tools included
	rm -rf bin dist .tools

# The name of a tool holds its version, so that another pin installs it again.
$(GOLANGCI_LINT):
	$(call install,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,$(GOLANGCI_LINT_VERSION))

$(PROTOC_GEN_GO):
	$(call install,google.golang.org/protobuf/cmd/protoc-gen-go,$(PROTOC_GEN_GO_VERSION))

define install
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) go install $(1)@$(2)
	@mv $(TOOLS)/$(notdir $(1)) $@
endef

define protoc
protoc --plugin=protoc-gen-go=$(PROTOC_GEN_GO) --go_out=$(1) --go_opt=module=$(MODULE) $(PROTOS)
endef

.PHONY: need-protoc
need-protoc:
	@command -v protoc >/dev/null || { \
	  echo 'protoc is missing; install it (Debian, Ubuntu: apt install protobuf-compiler; Fedora: dnf install protobuf-compiler)' >&2; exit 1; }
