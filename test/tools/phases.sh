# Sourced by run-tests: what each phase does.
set -euo pipefail

set_up() {
    test/tools/setup
    for n in 25 27 29; do
        (use_otp $n; echo "Erlang/OTP $n: $(command -v erl)")
        test/tools/proper-get $n
    done
    [ "$(uname -m)" != x86_64 ] || test/tools/vm-get
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

# vm OTP...: what needs a kernel that not everybody has, for each OTP in a VM of its own, all at the same time
vm() {
    local otp vm vms=() status=0 logs=$root/_build/test-logs
    [ "$(uname -m)" = x86_64 ] || { echo "Skipped 1 (1, 0) tests: the VM is for x86_64 only"; return; }
    for otp; do (use_otp "$otp"; rebar3 ct --compile_only); done
    for otp; do
        (use_otp "$otp"
        export POLYDIST_SLOWNESS=3 # one CPU each, and two for all of them
        test/tools/vm-run --limit 1200 --keep "$build/test/vm" test/tools/ct-run "$build/test/vm" \
            polydist_transport_SUITE:vsock,sctp,ktls polydist_vsock_SUITE polydist_sctp_SUITE \
            polydist_ktls_SUITE) \
            >"$logs/vm-$otp.log" 2>&1 &
        vms+=($!)
    done
    for vm in "${vms[@]}"; do wait "$vm" || status=$?; done
    for otp; do cat "$logs/vm-$otp.log"; done
    return $status
}
