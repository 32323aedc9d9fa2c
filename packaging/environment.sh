#!/usr/bin/env bash
# Makes a Python environment from a hash-pinned lock, once, and prints its directory.
#
#   environment.sh LOCK DIRECTORY [--with-project]
#
# The environment's name carries a hash of the lock and of the Python version, so that a changed lock makes a new one
# and an unfinished one is never used. With --with-project the project itself is installed as well, again only when
# its files changed. Messages go to stderr.
set -euo pipefail

say() { echo "$*" >&2; }

find_python() {
    local candidate
    for candidate in ${MUSTER_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    say "Python 3.11 or later is needed and was not found. On Debian and Ubuntu: sudo apt-get install python3 python3-venv"
    say "(or set MUSTER_PYTHON to the program's path)"
    return 1
}

# Debian keeps pip for new environments in a package of its own. Without it and without root, the package's wheel
# serves as well.
make_environment() {
    local target=$1 work
    rm -rf "$target"
    if "$python" -m venv "$target" >/dev/null 2>&1; then return 0; fi
    rm -rf "$target"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing python3-venv with apt"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; } </dev/null >&2 || true
        if "$python" -m venv "$target" >/dev/null 2>&1; then return 0; fi
        rm -rf "$target"
    fi
    work=$(mktemp -d)
    if (cd "$work" && apt-get download python3-pip-whl >/dev/null 2>&1 && dpkg-deb -x python3-pip-whl_*.deb .) &&
        "$python" -m venv --without-pip "$target" &&
        PYTHONPATH=$(ls "$work"/usr/share/python-wheels/pip-*.whl) "$target/bin/python" -m pip install -q \
            --disable-pip-version-check "$(ls "$work"/usr/share/python-wheels/pip-*.whl)" >&2; then
        rm -rf "$work"
        return 0
    fi
    rm -rf "$work" "$target"
    say "a Python environment could not be made. On Debian and Ubuntu: sudo apt-get install python3-venv"
    return 1
}

lock=${1:?usage: environment.sh LOCK DIRECTORY [--with-project]}
directory=${2:?usage: environment.sh LOCK DIRECTORY [--with-project]}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(find_python)
name=$(basename "$lock" .txt)-$({ sha256sum <"$lock"; "$python" -c 'import sys; print(sys.version, sys.prefix)'; } | sha256sum | cut -c1-12)
target=$directory/$name

if [ ! -f "$target/.complete" ]; then
    mkdir -p "$directory"
    say "making the Python environment $target"
    make_environment "$target"
    say "installing $(grep -c == "$lock") pinned packages (once; a minute or two)"
    "$target/bin/python" -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r "$lock" >&2 || {
        say "the packages could not be installed: see the lines above. Without network, give pip a local source"
        say "(PIP_NO_INDEX=1 PIP_FIND_LINKS=DIRECTORY) and run this again; what is installed already is kept by pip's cache."
        exit 6
    }
    touch "$target/.complete"
fi

if [ "${3:-}" = "--with-project" ]; then
    sources=$(cd "$root" && { find agent controller wire device_profiles -type f ! -name '*.pyc' \
        ! -path '*/node_modules/*' ! -path 'controller/console/static*' | LC_ALL=C sort; echo pyproject.toml; } |
        tr '\n' '\0' | xargs -0 sha256sum | sha256sum | cut -c1-16)
    if [ "$(cat "$target/.project" 2>/dev/null)" != "$sources" ]; then
        if ! "$target/bin/python" "$root/packaging/console_hook.py" --check; then
            say "installing Node.js for the console (once, from a wheel)"
            "$target/bin/python" -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
                -r "$root/packaging/locks/node.txt" >&2 || {
                say "Node.js could not be installed: see above. MUSTER_SKIP_CONSOLE=1 goes without the console"
                exit 6
            }
        fi
        say "installing muster"
        "$target/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall "$root" >&2 || {
            say "muster itself could not be installed: see the lines above"
            exit 1
        }
        echo "$sources" >"$target/.project"
    fi
fi
echo "$target"
