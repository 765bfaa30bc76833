#!/bin/sh
# Builds the native library and installs it as priv/polydist.so. rebar3 runs this before it compiles.
#   native/build.sh         the library
#   native/build.sh cert    the tool that makes certificates, target/release/polydist-cert
#   native/build.sh check   nothing, only sees that the Rust toolchain will do
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

fail() { echo "polydist: $1" >&2; exit 1; }

need=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml)
cure="install it with: curl https://sh.rustup.rs -sSf | sh -s -- -y"
command -v rustup >/dev/null && cure="get it with: rustup update stable"
command -v cargo >/dev/null && command -v rustc >/dev/null ||
    fail "the native library needs Rust $need or newer, and no cargo and rustc are in PATH; $cure."
have=$(rustc --version | cut -d' ' -f2)
[ "$(printf '%s\n%s\n' "$need" "$have" | sort -t. -k1,1n -k2,2n | head -n 1)" = "$need" ] ||
    fail "the native library needs Rust $need or newer and rustc here is $have; $cure."

# One target folder, ours, whatever the caller's environment says: a dependency then builds in its own copy.
build() { cargo build --release --locked --quiet --target-dir target -p "$1"; }

case ${1-} in
    cert) build polydist-cert; exit ;;
    check) exit ;;
esac

[ -f priv/polydist.so ] || echo "polydist: building the native library, which takes a minute the first time"
build polydist-nif
mkdir -p priv
for lib in target/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release/libpolydist.so \
           target/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release/libpolydist.dylib; do
    [ -f "$lib" ] || continue
    cmp -s "$lib" priv/polydist.so && exit
    cp "$lib" priv/polydist.so.$$ && mv priv/polydist.so.$$ priv/polydist.so # a new inode: running nodes keep theirs
    exit
done
fail "cargo built no libpolydist in target/release; please report this with the output of: cargo build -p polydist-nif."
