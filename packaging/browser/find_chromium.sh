#!/usr/bin/env bash
# Prints the path of a Chromium or Chrome on this machine, for the tests of the console, getting one with apt first where
# that is allowed; else exit code 1 and what to install. Messages go to stderr. Nobody needs it to run Muster.
set -euo pipefail

from_path() {
    local candidate
    for candidate in "${MUSTER_CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

from_path && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium with apt" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
        </dev/null >&2 || true
    from_path && exit 0
fi
cat >&2 <<'TEXT'
the tests of the console need Chromium. Install it and run this again:
    Debian, Ubuntu, Raspberry Pi OS:   sudo apt-get install chromium
or set MUSTER_CHROMIUM to the program's path.
TEXT
exit 1
