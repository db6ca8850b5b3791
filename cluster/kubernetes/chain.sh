#!/bin/bash
# The six steps as jobs, one after the other; all arguments go to kubectl (--namespace=me).
# What is finished says so and ends: after an error the same command goes on where it stood.
set -euo pipefail
cd "$(dirname "$0")"

kubectl "$@" apply -f experiment.yaml -f postgres.yaml
for file in [1-6]-*.yaml; do
    kubectl "$@" delete --ignore-not-found -f "$file" # an old job of this name would stand in the way
    kubectl "$@" apply -f "$file"
    jobs=$(grep -c "^kind: Job" "$file") complete=0
    while ((complete < jobs)); do
        sleep "${POLL:-10}"
        conditions=" $(kubectl "$@" get -f "$file" -o jsonpath='{..status.conditions[?(@.status=="True")].type}') "
        if [[ $conditions == *" Failed "* ]]; then
            echo "$file has failed: kubectl describe -f $file, and kubectl logs of its pods, say why" >&2
            exit 1
        fi
        complete=$({ grep -o " Complete\b" || true; } <<<"$conditions" | wc -l) # no match is no error: the job still runs
    done
    echo "$file is done"
done
