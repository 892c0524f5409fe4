#!/bin/sh
# On a spot machine of Google's: wait for the notice, then stop Ray gently.
#
#   sh notice.sh PID        PID: of `ray start --block`
#
# SIGTERM makes the node announce that it goes; the run saves a checkpoint and goes on without it.
# Without this nobody tells Ray: it learns of the loss when the machine is gone.
# METADATA names another server, for tests.
server=${METADATA:-http://metadata.google.internal}
url=$server/computeMetadata/v1/instance/preempted

while kill -0 "$1" 2>/dev/null; do
    # the answer comes when the value changes, or after a minute
    told=$(wget -q -O- -T 90 --header="Metadata-Flavor: Google" \
        "$url?wait_for_change=true&timeout_sec=60") || sleep 5
    if [ "$told" = TRUE ]; then
        kill -TERM "$1"
        exit 0
    fi
done
