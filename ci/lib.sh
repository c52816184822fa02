# shellcheck shell=bash
# What the scripts beside this file share: where things are, and how to say what happens.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Tools for disks and networks, which a user's PATH leaves out.
PATH=$PATH:/usr/sbin:/sbin

# Packages, layers and, under CI, cargo's target folder lie here, so that a fresh clone is quick.
cache=${RACKSTICK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rackstick}
target=${CARGO_TARGET_DIR:-}
if [[ -z $target ]]; then
    if [[ ${CI:-} == true ]]; then target=$cache/target; else target=target; fi
fi
CARGO_TARGET_DIR=$(realpath -m "$target")
export CARGO_TARGET_DIR

# As in .cargo/config.toml.
triple=x86_64-unknown-linux-gnu
# Where binaries land.
# shellcheck disable=SC2034 # used by the scripts that read this file
release=$CARGO_TARGET_DIR/$triple/release

say() { printf '\n== %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# For every compilation of the release profile: takes this machine's paths out of the binaries, so that two clones give the
# same bytes. Crates of the workspace are named by relative paths anyway.
# shellcheck disable=SC2034
flags=(--locked --config
    "target.$triple.rustflags=['--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo']")

# Makes the target folder this clone's, and lets nobody else change it before this script ends: swapped binaries would spoil tests. Clones may share
# it, and cargo tells old from new by times: what another clone compiled last would pass for this one's.
own_target() {
    mkdir -p "$CARGO_TARGET_DIR"
    exec 9>"$CARGO_TARGET_DIR/.ci-test"
    flock 9
    local mark=$CARGO_TARGET_DIR/.clone profile
    if [[ ! -e $mark || $(<"$mark") != "$PWD" ]]; then
        for profile in dev release; do
            cargo clean --quiet --profile "$profile" "${flags[@]}" --target "$triple" --workspace
        done
        echo "$PWD" >"$mark"
    fi
}

as_root() {
    if [[ $EUID == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "run me as root, or install sudo, so that I can do: $*"
    fi
}

# This machine's Debian, as bookworm.
debian_codename() { (. /etc/os-release && echo "${VERSION_CODENAME:-}"); }

# The place from which this machine takes that Debian's packages; nothing if it is no Debian. Apt's variables, not the shell's.
# shellcheck disable=SC2016
debian_archive() {
    apt-get indextargets --format '$(CODENAME) $(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v codename="$(debian_codename)" '$1 == codename && $2 == "Debian" && $3 == "main" && !n++ { print $4 }'
}

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >/dev/null; }
