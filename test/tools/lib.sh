# Sourced by the scripts here. Folders, Erlang/OTP versions, Debian's packages, and background processes that end with the script.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cache=${POLYDIST_CACHE:-$HOME/.cache/polydist}
export ERL_CRASH_DUMP=/dev/null NO_COLOR=1 LC_ALL=C.UTF-8
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

die() { echo "${0##*/}: $*" >&2; exit 1; }

# use_otp [25|27|29]: puts that Erlang/OTP in PATH (the host's own if it is that one, else the one test/tools/otp-get
# unpacked), with a build folder of its own beside the host's _build. Without an argument: the host's.
use_otp() {
    local host; host=$(otp_release 2>/dev/null || true)
    otp=${1:-$host}
    if [ -z "$otp" ]; then die "no erl in PATH; run: make all"; fi
    build=$root/_build
    if [ "$otp" != "$host" ]; then
        [ -e "$cache/otp$otp.ok" ] || "$root/test/tools/otp-get" "$otp"
        PATH=$cache/otp$otp/usr/lib/erlang/bin:$cache/otp$otp/usr/bin:$PATH
        build=$root/_build$otp
    fi
    ebin=$build/default/lib/polydist/ebin
    export PATH REBAR_BASE_DIR=$build REBAR_CACHE_DIR=$cache/rebar3-$otp
}

# debian_suite 25|27|29: the Debian that has that Erlang/OTP
debian_suite() {
    case $1 in
        25) echo bookworm ;;
        27) echo trixie ;;
        29) echo sid ;;
        *) die "which Erlang/OTP: 25, 27 or 29?" ;;
    esac
}

# debian_unpack SUITE DIR PACKAGE...: the packages of that Debian, whichever this machine runs, unpacked into DIR and not
# installed: apt-get works in a folder of its own, without root rights.
debian_unpack() {
    local suite=$1 apt=$2/.apt mirror tool deb try; shift 2
    for tool in apt-get dpkg-deb flock; do
        command -v $tool >/dev/null || die "needs $tool (Debian packages: apt, dpkg, util-linux)"
    done
    mirror=$(grep -hosE 'https?://[^ ]*/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/* | head -n 1)
    mkdir -p "$apt"/{lists/partial,cache/archives/partial,etc/preferences.d,none,debs}
    : >"$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $suite main" >"$apt/etc/sources.list"
    cat >"$apt/apt.conf" <<C
Dir::Etc "$apt/etc"; Dir::Etc::parts "$apt/none"; Dir::Etc::main "$apt/none";
Dir::State::lists "$apt/lists"; Dir::State::status "$apt/status"; Dir::Cache "$apt/cache";
Acquire::Languages "none"; Acquire::GzipIndexes "true"; Acquire::Retries "3"; Acquire::Check-Valid-Until "false"; APT::Sandbox::User "root";
C
    for try in 1 2 3; do
        (export APT_CONFIG=$apt/apt.conf; apt-get -qq update && cd "$apt/debs" && apt-get -qq download "$@") && break
        [ $try -lt 3 ] || return 1
        sleep $((try * 3))
    done
    for deb in "$apt"/debs/*.deb; do dpkg-deb -x "$deb" "${apt%/.apt}" || return 1; done
    rm -rf "$apt"
}

# compile: the Erlang side and the native library; quiet unless it fails
compile() {
    [ -e "$root/priv/polydist.so" ] || echo "compiling, which takes a few minutes the first time"
    (cd "$root" && rebar3 compile >"$tmp/compile.out" 2>&1) || { cat "$tmp/compile.out" >&2; die "cannot compile"; }
}

otp_release() { erl -noinput -eval 'io:put_chars(erlang:system_info(otp_release)), halt().'; }

# A private folder, and everything started with `background`, are gone when the script ends.
pids=()
work_dir() { tmp=$(mktemp -d "${TMPDIR:-/tmp}/polydist-XXXXXX"); trap clean_up EXIT; trap 'exit 130' INT TERM; }
background() { "$@" & pids+=($!); }
stop() {
    local i pid
    [ $# -gt 0 ] || return 0
    kill "$@" 2>/dev/null || return 0
    for pid; do
        for i in {1..60}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.05; done
        kill -KILL "$pid" 2>/dev/null || true
    done
    wait "$@" 2>/dev/null || true
}
clean_up() { local rc=$?; stop "${pids[@]}"; rm -rf "$tmp"; exit $rc; }

# An epmd of our own on a free port, so that nobody else's nodes are seen or disturbed.
private_epmd() {
    local try
    for try in 1 2 3 4 5 6 7 8 9; do
        export ERL_EPMD_PORT=${1:-$((14500 + RANDOM % 4000))}
        (exec 3<>"/dev/tcp/127.0.0.1/$ERL_EPMD_PORT") 2>/dev/null && continue
        background epmd -port "$ERL_EPMD_PORT"
        epmd=${pids[-1]}
        for _ in {1..50}; do epmd -names >/dev/null 2>&1 && kill -0 "$epmd" 2>/dev/null && return; sleep 0.02; done
    done
    die "epmd does not start on a port of its own"
}

# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done
}

# local_names: localhost is an IPv4 and an IPv6 address, whatever /etc/hosts says
local_names() {
    printf '%s\n' '{host,{127,0,0,1},["localhost"]}.' '{host,{0,0,0,0,0,0,0,1},["localhost"]}.' '{lookup,[file,native]}.' >"$tmp/inetrc"
    export ERL_INETRC=$tmp/inetrc
}

# certificates DIR: a throw-away authority with one certificate for localhost, and DIR/dist_tls.conf
certificates() {
    sh "$root/native/build.sh" cert
    "$root/target/release/polydist-cert" init "$1" --host localhost >/dev/null
}

# node_certificates DIR NAME...: a throw-away authority in DIR/ca, and for each node on localhost a certificate of its own, with
# DIR/NAME/dist_tls.conf
node_certificates() {
    local dir=$1 name cert=$root/target/release/polydist-cert; shift
    sh "$root/native/build.sh" cert
    "$cert" ca "$dir/ca" >/dev/null
    for name; do "$cert" node "$dir/$name" "$name@localhost" --ca "$dir/ca" >/dev/null; done
}
