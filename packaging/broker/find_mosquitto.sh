#!/usr/bin/env bash
# Prints the path of a mosquitto that runs on this machine, getting one first if need be:
# on PATH; else with apt where that is allowed; else the distribution's package unpacked under PREFIX without root;
# else exit code 1 and what to install. Messages go to stderr.
#
#   find_mosquitto.sh PREFIX [--no-apt]
set -euo pipefail

# Its help ends with a status other than 0, so what it prints is what counts.
runs() { local help; help=$("$1" -h 2>/dev/null || true); [[ $help == *"mosquitto version"* ]]; }

from_path() {
    local candidate
    for candidate in "${MUSTER_MOSQUITTO:-}" "$(command -v mosquitto || true)" /usr/sbin/mosquitto /usr/local/sbin/mosquitto \
        "$prefix/mosquitto"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ] && runs "$candidate"; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

with_apt() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing mosquitto with apt" >&2
    # The package starts a service of its own; ours is a child with its own settings, so that start is refused.
    local policy=/usr/sbin/policy-rc.d made=""
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=yes
    fi
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mosquitto; } \
        </dev/null >&2 || { [ -z "$made" ] || rm -f "$policy"; return 1; }
    [ -z "$made" ] || rm -f "$policy"
}

# The package and those of its libraries that this machine lacks, unpacked into PREFIX: nothing outside it changes.
unpacked() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    echo "unpacking the distribution's mosquitto under $prefix (no root needed)" >&2
    local work
    work=$(mktemp -d)
    (
        cd "$work"
        apt-get download mosquitto >/dev/null 2>&1 || exit 1
        packages=$(dpkg-deb -f mosquitto_*.deb Depends | tr ',' '\n' | sed 's/[(|].*//; s/ //g' | grep '^lib' | grep -v '^libc6$' || true)
        for package in $packages libcjson1 libwebsockets17 libev4 libuv1; do
            apt-get download "$package" >/dev/null 2>&1 || true # one that is not there shows below as a library not found
        done
        for file in *.deb; do dpkg-deb -x "$file" tree; done
    ) || { rm -rf "$work"; return 1; }
    mkdir -p "$prefix"
    rm -rf "$prefix/tree"
    mv "$work/tree" "$prefix/tree"
    rm -rf "$work"
    local libraries
    libraries=$(find "$prefix/tree" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "%s" "$@"\n' \
        "$libraries" "$prefix/tree/usr/sbin/mosquitto" >"$prefix/mosquitto"
    chmod 755 "$prefix/mosquitto"
}

prefix=${1:?usage: find_mosquitto.sh PREFIX [--no-apt]}
from_path && exit 0
if [ "${2:-}" != "--no-apt" ] && with_apt && from_path; then exit 0; fi
if unpacked && from_path; then exit 0; fi
cat >&2 <<'TEXT'
mosquitto, the message broker, is not on this machine and could not be fetched. Install it and run this again:
    Debian, Ubuntu, Raspberry Pi OS:   sudo apt-get install mosquitto
    Fedora:                            sudo dnf install mosquitto
    macOS:                             brew install mosquitto
or set MUSTER_MOSQUITTO to the program's path.
TEXT
exit 1
