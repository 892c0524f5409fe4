#!/usr/bin/env bash
# Fill the ${NAMES} of files from the environment, and write them to stdout as one stream:
#
#   infra/render.sh infra/kuberay/base.yaml infra/kuberay/cluster.yaml | kubectl apply -f -
#
# A name that is not set is an error: nothing half filled reaches a cluster.
set -euo pipefail

names=(PROJECT REGION IMAGE CONFIG MEMBER)

if [ $# -eq 0 ]; then
    echo "usage: infra/render.sh FILE... (fills ${names[*]} from the environment)" >&2
    exit 2
fi
between=
for file in "$@"; do
    text=$(cat "$file")
    for name in "${names[@]}"; do
        case $text in
            *"\${$name}"*)
                if [ -z "${!name:-}" ]; then
                    echo "error: $file needs $name, which is not set" >&2
                    echo "hint: export $name=..., see infra/README.md" >&2
                    exit 2
                fi
                text=${text//"\${$name}"/"${!name}"}
                ;;
        esac
    done
    printf '%s%s\n' "$between" "$text"
    between=$'---\n'
done
