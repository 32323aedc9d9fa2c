#!/usr/bin/env bash
# Muster on this machine, in one command. See README.md and docs/guide/first-journey.md.
set -euo pipefail

main() {
    local here data devices=1 once="" local_run="" arguments=()
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    data=${XDG_DATA_HOME:-${HOME:?HOME is not set}/.local/share}/muster

    while [ $# -gt 0 ]; do
        case "$1" in
        --local) local_run=yes ;;
        --once) once=yes ;;
        --devices) devices=${2:-}; [ $# -lt 2 ] || shift ;;
        --devices=*) devices=${1#*=} ;;
        --data) data=${2:-}; [ $# -lt 2 ] || shift; [ -n "$data" ] || mistyped "--data needs a directory" ;;
        --data=*) data=${1#*=} ;;
        -h | --help) usage; exit 0 ;;
        *) mistyped "unknown argument: $1" ;;
        esac
        shift
    done
    [ -n "$local_run" ] || mistyped "say --local"
    [[ $devices =~ ^[1-9][0-9]?$ ]] || mistyped "--devices takes a number from 1 to 99, not '$devices'"

    mkdir -p "$data" || { echo "deploy_edge.sh: cannot write to $data; choose another place with --data" >&2; exit 1; }
    data=$(cd "$data" && pwd)
    local environment mosquitto
    environment=$("$here/packaging/environment.sh" "$here/packaging/locks/local.txt" "$data/env" --with-project)
    mosquitto=$("$here/packaging/broker/find_mosquitto.sh" "$data/broker-program")

    arguments=(local --data "$data" --devices "$devices")
    [ -z "$once" ] || arguments+=(--once)
    cd /
    MUSTER_MOSQUITTO=$mosquitto exec "$environment/bin/muster" "${arguments[@]}"
}

mistyped() {
    printf 'deploy_edge.sh: %s\n\n' "$1" >&2
    usage >&2
    exit 2
}

usage() {
    cat <<'TEXT'
usage: ./deploy_edge.sh --local [--devices N] [--once] [--data DIRECTORY]

Starts a whole fleet on this machine, without root: a controller with its roles, a message broker and N agents (1).
Trains a small model on scikit-learn's digits, makes and measures builds, signs the best, rolls it out to the agents
and sends a request through the gateway. Stays up until Ctrl-C; a second start goes on with what is there.

  --devices N       how many agents to run (default 1)
  --once            end after the first answered request, with exit code 0
  --data DIRECTORY  where everything is kept (default: ~/.local/share/muster)
TEXT
}

main "$@"
