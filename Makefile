# `make demo` tells the story, `make test` passes the tests; each installs what it lacks.
SHELL := /bin/bash
ENV := eval "$$(tools/tools env)"

.PHONY: demo test bench fuzz tools env schemas lint

demo: tools
	@cargo build --quiet
	@$(ENV) && target/debug/evenkeel demo $(if $(KEEP),--keep)

test: tools
	@$(ENV) && cargo test --no-fail-fast

bench: tools
	@$(ENV) && cargo bench --bench evenkeel

# Cases without end over everything that reads from outside, until one fails or somebody stops it.
fuzz:
	@while FUZZ=20000 cargo test --quiet --test suite outside; do :; done

lint:
	@cargo fmt --check
	cargo clippy --all-targets -- -D warnings

tools:
	@tools/tools build

env:
	@tools/tools env

schemas:
	@cargo run --quiet -- schema --write docs/schemas
