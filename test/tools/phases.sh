# Sourced by run-tests: what each phase does.
set -euo pipefail

set_up() {
    test/tools/setup
    for n in 25 27 29; do (use_otp $n; echo "Erlang/OTP $n: $(command -v erl)"); done
    sh native/build.sh
    sh native/build.sh cert
}

rust_format() { cargo fmt --all --check; }
rust_lint() { cargo clippy --workspace --all-targets --locked --quiet -- -D warnings; }
rust_test() { cargo test --workspace --locked; }
rust_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet; }

# erlang COMMAND OTP: that OTP's own rebar3, in its own build folder
erlang() { use_otp "$2"; rebar3 "$1"; }
