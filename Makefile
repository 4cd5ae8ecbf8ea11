# `make demo` tells the story, `make test` passes the tests; each installs what it lacks.
SHELL := /bin/bash
ENV := eval "$$(tools/tools env)"

.PHONY: demo test bench tools env schemas lint

demo: tools
	@cargo build --quiet
	@$(ENV) && target/debug/evenkeel demo $(if $(KEEP),--keep)

test: tools
	@$(ENV) && cargo test --no-fail-fast

bench: tools
	@$(ENV) && cargo bench --bench evenkeel

lint:
	@cargo fmt --check
	cargo clippy --all-targets -- -D warnings

tools:
	@tools/tools build

env:
	@tools/tools env

schemas:
	@cargo run --quiet -- schema --write docs/schemas
