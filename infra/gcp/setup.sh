#!/usr/bin/env bash
# From an empty project with billing to buckets, a registry, a GKE cluster and who may do what:
#
#   PROJECT=my-project REGION=us-central1 infra/gcp/setup.sh --dry-run   # prints the commands
#   PROJECT=my-project REGION=us-central1 infra/gcp/setup.sh --gpus
#
# --gpus     also the pools with GPUs, which need quota: see infra/README.md
# --vms      also the service accounts of `ray up`
# --dry-run  prints what would be run and asks Google nothing
#
# Safe to repeat: what is there is left as it is, or set to the same again. Deletes nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dry_run=no gpus=no vms=no
for word in "$@"; do
    case $word in
        --dry-run) dry_run=yes ;;
        --gpus) gpus=yes ;;
        --vms) vms=yes ;;
        *) echo "error: unknown option $word" >&2; sed -n '2,12p' "$0" >&2; exit 2 ;;
    esac
done
for name in PROJECT REGION; do
    if [ -z "${!name:-}" ]; then
        echo "error: $name is not set" >&2
        echo "hint: PROJECT=my-project REGION=us-central1 $0" >&2
        exit 2
    fi
done
zone=${ZONE:-$REGION-a} # one zone: no traffic between zones to pay, and no fee for the first cluster
machine=${GPU_MACHINE:-g2-standard-8}
card=${GPU_TYPE:-nvidia-l4}
data=gs://$PROJECT-imagen-data # data sets: versions kept, training may only read
runs=gs://$PROJECT-imagen-runs # everything that stages write

run() {
    printf '+' >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
    [ $dry_run = yes ] || "$@"
}

# there DESCRIPTION...: true when `gcloud DESCRIPTION` finds it
there() { [ $dry_run = no ] && gcloud "$@" --project="$PROJECT" >/dev/null 2>&1; }

g() { run gcloud "$@" --project="$PROJECT"; }

services() {
    g services enable container.googleapis.com artifactregistry.googleapis.com \
        storage.googleapis.com iam.googleapis.com iamcredentials.googleapis.com \
        compute.googleapis.com containerfilesystem.googleapis.com # the last: image streaming
}

bucket() { # URL LIFECYCLE
    there storage buckets describe "$1" ||
        g storage buckets create "$1" --location="$REGION" --uniform-bucket-level-access \
            --public-access-prevention
    g storage buckets update "$1" --lifecycle-file="$here/$2"
}

buckets() {
    bucket "$data" lifecycle-data.json
    # a data set that was deleted or overwritten by mistake can be had back for 30 days
    g storage buckets update "$data" --versioning --soft-delete-duration=30d
    bucket "$runs" lifecycle-runs.json
    # checkpoints come and go: with soft delete, which is on by default, each is paid for 7 days more
    g storage buckets update "$runs" --no-versioning --clear-soft-delete
}

registry() {
    there artifacts repositories describe imagen --location="$REGION" ||
        g artifacts repositories create imagen --location="$REGION" --repository-format=docker \
            --immutable-tags # machines keep an image by its tag, and would not see another one
}

account() { # NAME WHAT
    there iam service-accounts describe "$1@$PROJECT.iam.gserviceaccount.com" ||
        g iam service-accounts create "$1" --display-name="$2"
}

allow() { # BUCKET MEMBER ROLE [CONDITION]
    g storage buckets add-iam-policy-binding "$1" --member="$2" --role="$3" \
        --condition="${4:-None}" --format=none
}

# What training may not touch although it writes to the same bucket: the data sets of each run,
# also of one whose `out` is the bucket itself. No folder of an `out` may be called like one
not_data_sets() {
    local kinds=(data index embeddings prepared) out="" kind
    for kind in "${kinds[@]}"; do
        out+=${out:+ && }"resource.name.extract('/objects/{run}/$kind/') == ''"
        out+=" && resource.name.extract('/objects/$kind/{file}') == ''"
    done
    echo "expression=$out,title=not-data-sets"
}

may_write_data() { # MEMBER
    allow "$data" "$1" roles/storage.objectUser
    allow "$runs" "$1" roles/storage.objectUser
}

may_train() { # MEMBER
    allow "$data" "$1" roles/storage.objectViewer
    allow "$runs" "$1" roles/storage.objectViewer
    allow "$runs" "$1" roles/storage.objectUser "$(not_data_sets)"
}

nodes() { # the machines themselves: logs, metrics and images, no data
    account imagen-nodes "Machines of GKE"
    local who=serviceAccount:imagen-nodes@$PROJECT.iam.gserviceaccount.com
    g projects add-iam-policy-binding "$PROJECT" --member="$who" \
        --role=roles/container.defaultNodeServiceAccount --condition=None --format=none
    g artifacts repositories add-iam-policy-binding imagen --location="$REGION" \
        --member="$who" --role=roles/artifactregistry.reader --format=none
}

pool() { # NAME MACHINE MOST [OPTION...]
    local name=$1 type=$2 most=$3 labels=imagen.io/pool=$1
    shift 3
    there container node-pools describe "$name" --cluster=imagen --location="$zone" ||
        g container node-pools create "$name" --cluster=imagen --location="$zone" \
            --machine-type="$type" --disk-type=pd-balanced --disk-size=100 \
            --num-nodes=0 --enable-autoscaling --min-nodes=0 --max-nodes="$most" \
            --node-labels="$labels" --workload-metadata=GKE_METADATA --enable-image-streaming \
            --service-account="imagen-nodes@$PROJECT.iam.gserviceaccount.com" "$@"
}

cluster() {
    # Dataplane V2 enforces the NetworkPolicy of base.yaml. The default pool is that of heads
    there container clusters describe imagen --location="$zone" ||
        g container clusters create imagen --location="$zone" --release-channel=regular \
            --enable-dataplane-v2 --workload-pool="$PROJECT.svc.id.goog" \
            --machine-type=e2-standard-4 --num-nodes=1 --enable-autoscaling \
            --min-nodes=1 --max-nodes=6 --node-labels=imagen.io/pool=cpu \
            --workload-metadata=GKE_METADATA --enable-image-streaming \
            --service-account="imagen-nodes@$PROJECT.iam.gserviceaccount.com"
    local spot=(--spot --node-taints=cloud.google.com/gke-spot=true:NoSchedule)
    pool cpu-spot e2-standard-8 8 "${spot[@]}"
    [ $gpus = yes ] || return 0
    local gpu=(--accelerator="type=$card,count=1,gpu-driver-version=default")
    pool gpu-spot "$machine" 16 "${spot[@]}" "${gpu[@]}"
    pool gpu "$machine" 16 "${gpu[@]}"
}

pods() { # Kubernetes's service accounts of infra/kuberay/base.yaml, without any keys
    local number=NUMBER
    [ $dry_run = yes ] ||
        number=$(gcloud projects describe "$PROJECT" --format="value(projectNumber)")
    local who=principal://iam.googleapis.com/projects/$number/locations/global
    who+=/workloadIdentityPools/$PROJECT.svc.id.goog/subject/ns/imagen/sa
    may_write_data "$who/imagen-data"
    may_train "$who/imagen-train"
    may_write_data "$who/imagen-pipeline"
}

machines() { # of infra/ray-up/gcp.yaml: they run all stages
    account imagen-vm "Machines of ray up"
    account imagen-vm-head "Head of ray up: starts and stops the others"
    local domain=$PROJECT.iam.gserviceaccount.com name
    for name in imagen-vm imagen-vm-head; do
        may_write_data "serviceAccount:$name@$domain"
        g artifacts repositories add-iam-policy-binding imagen --location="$REGION" \
            --member="serviceAccount:$name@$domain" --role=roles/artifactregistry.reader \
            --format=none
    done
    g projects add-iam-policy-binding "$PROJECT" --member="serviceAccount:imagen-vm-head@$domain" \
        --role=roles/compute.instanceAdmin.v1 --condition=None --format=none
    g iam service-accounts add-iam-policy-binding "imagen-vm@$domain" \
        --member="serviceAccount:imagen-vm-head@$domain" --role=roles/iam.serviceAccountUser \
        --condition=None --format=none
}

services
buckets
registry
nodes
cluster
pods
[ $vms = no ] || machines
echo "done: data sets in $data, runs in $runs, cluster imagen in $zone" >&2
