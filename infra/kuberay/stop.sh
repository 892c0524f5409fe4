#!/usr/bin/env bash
# Stop a RayJob in order: its stage saves a checkpoint, then its machines go.
#
#   infra/kuberay/stop.sh imagen-train-base
#
# `kubectl delete rayjob` alone takes the cluster away at once: KubeRay 1.7 asks the job to stop and
# waits for nothing. Here Ray is asked, which waits for RAY_JOB_STOP_WAIT_TIME_S at most.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: infra/kuberay/stop.sh NAME (one of: kubectl -n imagen get rayjobs)" >&2
    exit 2
fi

k() { kubectl -n imagen "$@"; }
of() { k get rayjob "$1" -o "jsonpath={.status.$2}"; }

state=$(of "$1" jobStatus)
case $state in
    PENDING | RUNNING)
        cluster=$(of "$1" rayClusterName)
        job=$(of "$1" jobId)
        head=$(k get pod -l "ray.io/cluster=$cluster,ray.io/node-type=head" -o name)
        k exec "$head" -c ray-head -- ray job stop --address http://127.0.0.1:8265 "$job"
        ;;
    *) echo "$1 does not run (${state:-not submitted yet})" >&2 ;;
esac
k delete rayjob "$1"
