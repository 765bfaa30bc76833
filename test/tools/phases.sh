# Sourced by run-tests: what each phase does.
set -euo pipefail

set_up() {
    test/tools/setup
    for n in 25 27 29; do
        (use_otp $n; echo "Erlang/OTP $n: $(command -v erl)")
        test/tools/proper-get $n
    done
    sh native/build.sh
    sh native/build.sh cert
}

rust_format() { cargo fmt --all --check; }
rust_lint() { cargo clippy --workspace --all-targets --locked --quiet -- -D warnings; }
rust_test() { cargo test --workspace --locked; }
rust_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet; }

# erlang COMMAND OTP: that OTP's own rebar3, in its own build folder
erlang() { use_otp "$2"; rebar3 "$1"; }

# properties OTP: test/properties by PropEr, a build of its own since nothing else knows PropEr
properties() {
    use_otp "$1"
    test/tools/proper-get "$1"
    ERL_LIBS=$cache/proper$1/usr/lib/erlang/lib rebar3 as properties eunit --dir=test/properties
}
