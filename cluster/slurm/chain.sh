#!/bin/bash
# The whole method as jobs that wait for one another. From the checkout, on the host where sbatch is:
#
#   DATASET=cifar10 EXP=0001 IMG_TOTAL=400000 cluster/slurm/chain.sh --partition=gpu --account=me
#
# All arguments go to every sbatch. SEARCH_WORKERS (1), SHARDS (8) and SIZES (10) say how wide the stages are; ENC_FLAGS,
# DIF_FLAGS, SEARCH_FLAGS, SECOND_SEARCH_FLAGS, GENERATE_FLAGS and CLASSIFY_FLAGS go to the scripts. A stage that fails takes
# those after it off the queue; the same command goes on where it stood, for what is finished says so and ends.
set -euo pipefail
: "${DATASET:?}" "${EXP:?}" "${IMG_TOTAL:?}" # needed by the last jobs too: days later
workers=${SEARCH_WORKERS:-1} shards=${SHARDS:-8}
if ((workers > 1)) && [[ -z ${STORAGE:-} ]]; then
    echo "SEARCH_WORKERS=$workers needs STORAGE, a database that all nodes reach" >&2
    exit 2
fi
if ((workers > 1)) && [[ " ${SEARCH_FLAGS:-} ${SECOND_SEARCH_FLAGS:-} " == *" --restart "* ]]; then
    echo "--restart is for a search of one worker: each of several would throw away what the others have begun" >&2
    exit 2
fi
cd "$(dirname "$0")/../.."
here=cluster/slurm after=

submit() { # PART, FLAGS, array of the job or nothing, file
    local array=${3:+--array=$3}
    # shellcheck disable=SC2086
    after=$(PART=$1 FLAGS=$2 sbatch --parsable --kill-on-invalid-dep=yes ${after:+--dependency=afterok:$after} \
        $array "${options[@]}" "$here/$4")
    echo "$4 ${1:-} is job $after"
}

options=("$@")
((workers > 1)) && wide=0-$((workers - 1)) || wide=
submit enc "${ENC_FLAGS:-}" "" adapt.sh
submit enc "${SEARCH_FLAGS:-}" "$wide" search.sh
submit dif "${DIF_FLAGS:-}" "" adapt.sh
submit dif "${SECOND_SEARCH_FLAGS:-${SEARCH_FLAGS:-}}" "$wide" search.sh
SHARD=auto/$shards submit "" "${GENERATE_FLAGS:-}" "0-$((shards - 1))" generate.sh
# Of two shards that end together each may see the other's images too late to write the manifest.
((shards > 1)) && SHARD=1/1 submit "" "${GENERATE_FLAGS:-}" 0-0 generate.sh
submit "" "${CLASSIFY_FLAGS:-}" "0-${SIZES:-10}" classify.sh
