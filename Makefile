# `make` lists what there is. CI calls the same targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

GOLANGCI_LINT   := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOFUMPT         := mvdan.cc/gofumpt@v0.12.0

# Go's own flags for C, and no warnings about LMDB's code, which is not ours to mend.
export CGO_CFLAGS ?= -O2 -g -w

FUZZTIME ?= 10s
BENCH    ?= .
COMPOSE  ?= docker compose

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "; print "make TARGET\n"} /^[a-z]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what building, running and testing need and this machine lacks
	@scripts/setup

.PHONY: build
build: ## build bin/millrace (needs a C compiler)
	@go build -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/millrace ./cmd/millrace

.PHONY: run
run: ## try it: Postgres, broker, transfer and an edge here, under pgbench's load (FOR=30s ends by itself; ARGS=more)
	@scripts/setup run
	@$(MAKE) --no-print-directory build
	@exec bin/millrace dev --workload pgbench $(if $(FOR),--for $(FOR)) $(ARGS)

.PHONY: dev
dev: build ## millrace dev without a load (ARGS='--source postgres://… --brokers …')
	@exec bin/millrace dev $(ARGS)

.PHONY: test
test: ## run every test, against real Postgres and real Kafka
	@scripts/setup test
	@scripts/test

.PHONY: race
race: ## run every test under the race detector
	@scripts/setup test
	@scripts/test -race -timeout 60m ./...

.PHONY: integration
integration: ## run the end-to-end tests alone
	@scripts/setup test
	@scripts/test -p 1 -parallel 3 -timeout 25m ./tests/...

.PHONY: matrix
matrix: ## run capture's tests on each version of Postgres from 14 to 18 (VERSIONS='14 18')
	@scripts/setup test
	@scripts/matrix $(VERSIONS)

.PHONY: exactness
exactness: ## run pgbench at scale 10 for 60 s through every fault, over one broker and over three (ARGS='-seed N')
	@scripts/setup test
	@go test -run TestExactness -count=1 -v -timeout 60m ./tests/e2e -full $(ARGS)

.PHONY: nemesis
nemesis: ## do random walks over everything, SEEDS=200 from ARGS='-first 1' on (MODE=wal or trigger: not both)
	@scripts/setup test
	@go test -run TestNemesis -count=1 -v -timeout 6h ./tests/nemesis -seeds $(or $(SEEDS),200) $(if $(MODE),-capture $(MODE)) $(ARGS)

.PHONY: images
images: ## measure edges filled from an image and through the topic, and images written beside 5,000 changes a second (ROWS=10000000)
	@scripts/setup test
	@go test ./internal/follow -run '^$$' -bench 'Bootstrap|ImageBeside' -benchtime 1x -timeout 2h -rows $(or $(ROWS),10000000) -for 25s $(ARGS)

.PHONY: kills
kills: ## kill processes at random, KILLS=100 times each: applying, index builds, compaction, images written, fetched, restored and swapped in, the log and its pruning
	@go test ./edge ./edge/image ./edge/log ./internal/follow -run 'TestKill' -count=1 -v -timeout 2h -kills $(or $(KILLS),100) $(ARGS)

.PHONY: deliveries
deliveries: ## tell 125 watchers of 10,000 changes, a million deliveries, through connections that are cut off (ARGS='-seed N -race')
	@go test ./client -run TestDeliveries -count=1 -v -timeout 60m $(ARGS) -watchers 125 -events 10000

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME=10s
	@scripts/fuzz $(FUZZTIME)

.PHONY: bench
bench: ## run the benchmarks (BENCH=pattern), the one beside pg_recvlogical included
	@scripts/setup test
	@go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 2h ./...

.PHONY: overhead
overhead: ## measure what capture costs writers, with 1 and 8 clients, rows of 100 B and 2 KB: an hour or more (ARGS='-rounds 5')
	@scripts/setup test
	@go test ./benchmarks -run '^$$' -bench Overhead -timeout 6h -all $(ARGS)

.PHONY: reads
reads: ## measure reads beside Redis, LMDB alone and a server that does nothing (ARGS='-rows 10000000')
	@scripts/setup reads
	@go test ./edge -run '^$$' -bench BenchmarkReads -benchtime 1x -timeout 2h $(ARGS)
	@go test ./benchmarks/reads -run '^$$' -bench . -benchtime 1x -timeout 2h $(ARGS)

.PHONY: growth
growth: ## measure how a store bears growth, at 1, 3 and 10 million rows, and a unit and a load of 10 million (ARGS='-rows 10000000,30000000 -dir /disk')
	@go test ./benchmarks/growth -run '^$$' -bench '$(BENCH)' -benchtime 1x -timeout 4h -rows 1000000,3000000,10000000 -large 10000000 $(ARGS)

.PHONY: migrations
migrations: ## measure migrations: 10 million rows beside pgcopydb, changes beside logical replication, pauses of 20 moves there and back; then many killed ones (ARGS='-to 15')
	@scripts/setup migrations
	@go test ./benchmarks/migrate -run '^$$' -bench '$(BENCH)' -benchtime 1x -timeout 6h -rows $(or $(ROWS),10000000) -changes 1000000 -moves 20 $(ARGS)
	@go test ./migrations -run 'TestJournals|TestCutoverKilled' -count=1 -v -timeout 6h -migrate.journals 20 -migrate.kills 20 | grep -v level=

.PHONY: reporters
reporters: ## measure what reports of 10,000 edges cost publisher and broker, flat and up a tree of relays (ARGS='-edges 20000 -for 1m')
	@scripts/setup test
	@go test ./benchmarks/reports -run '^$$' -bench . -benchtime 1x -timeout 30m -edges 10000 -for 30s $(ARGS)

.PHONY: relay
relay: ## measure hops from edge to edge, then a tree of 50 edges through a killed, a hung and a forging relay, at 1,000 changes a second (ARGS='-edges 20')
	@go test ./tests/relay -run 'TestHops|TestForest' -count=1 -v -timeout 20m -edges 50 -rate 1000 -run-for 30s $(ARGS) | grep -v 'level=WARN'

.PHONY: upgrades
upgrades: build ## upgrade an edge under load 20 times, and restart it 20 times
	@scripts/setup test
	@go test ./cmd/millrace -run '^(TestUpgradeUnderLoad|TestRestartUnderLoad)$$' -count=1 -v -timeout 30m -binary "$$PWD/bin/millrace" -upgrades 20 -restarts 20

.PHONY: soak
soak: ## do 200 random walks in each mode, hold a transaction open for ten minutes, then repeat the end-to-end tests for FOR=1h
	@$(MAKE) --no-print-directory nemesis
	@go test -run '^$$' -bench HeldOpen -timeout 60m ./benchmarks -held 600 -capture trigger
	@scripts/soak $(or $(FOR),1h)

.PHONY: lint
lint: ## check the code's form and its import directions
	@go run $(GOLANGCI_LINT) run ./...

.PHONY: fmt
fmt: ## format the code
	@go run $(GOFUMPT) -w .

.PHONY: generate
generate: ## make generated code again (protobuf)
	@scripts/setup generate
	@go generate ./...

.PHONY: up
up: ## start docker-compose.yml: Postgres, three Kafka nodes, transfer, two edges
	@$(COMPOSE) up --build --detach --wait

.PHONY: down
down: ## stop it; its data stays (ARGS=--volumes removes it)
	@$(COMPOSE) down $(ARGS)
