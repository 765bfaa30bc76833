# Every target sets up what it needs first (test/tools/setup); a second run finds it there.
.PHONY: all demo test fuzz vm bench fmt clean

all: ## compile the library and the Erlang side
	@test/tools/setup
	rebar3 compile

demo: ## one node, four transports, in half a minute
	@test/tools/setup
	@test/demo/run

test: ## everything: Rust, Erlang/OTP 25, 27 and 29, lint, dialyzer, release, README
	@test/tools/run-tests

fuzz: ## a minute of libFuzzer on each parser of bytes from outside, or FUZZ_SECONDS
	@test/tools/setup
	@test/tools/fuzz

vm: ## what needs SCTP and vsock to oneself, in a small VM
	@test/tools/setup
	@test/tools/run-tests vm

bench: ## against the stock carriers; see test/bench/run for its options
	@test/tools/setup
	@test/bench/run

fmt:
	cargo fmt --all

clean:
	rm -rf _build* target priv
