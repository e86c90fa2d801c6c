# Thin: each target calls a script, which says what it does.
.PHONY: help demo test test-os bench clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 20

demo: ## a cloud and two devices on this machine; pushes three releases, the last one broken
	@tests/demo.sh

test: ## everything CI runs
	@tests/run.sh

test-os: ## all tests of operating system updates, the long half included
	@COPAL_OS_FULL=1 tests/run.sh os

bench: ## numbers, beside a peer or a limit
	@tests/bench/run.sh

clean: ## what builds left behind
	cargo clean
	rm -rf tests/browser/node_modules
