#!/bin/bash
# The six steps as jobs, one after the other; all arguments go to kubectl (--namespace=me).
# What is finished says so and ends: after an error the same command goes on where it stood.
set -euo pipefail
cd "$(dirname "$0")"

state() { # of the jobs in a file: numbers of pods that run, and conditions that hold; nothing where none is there
    kubectl "$@" -o jsonpath='{..status.active} {..status.conditions[?(@.status=="True")].type}' --ignore-not-found
}

kubectl "$@" apply -f experiment.yaml -f postgres.yaml
for file in [1-6]-*.yaml; do
    found=$(state "$@" get -f "$file")
    if [[ $found != *[0-9]* ]]; then # a job that has ended would stand in the way of a new one; one that runs goes on
        kubectl "$@" delete --ignore-not-found --cascade=foreground -f "$file"
    fi
    kubectl "$@" apply -f "$file"
    jobs=$(grep -c "^kind: Job" "$file") complete=0
    while ((complete < jobs)); do
        sleep "${POLL:-10}"
        found=" $(state "$@" get -f "$file") " || continue # the API is away for a moment
        if [[ $found == *" Failed "* ]]; then
            echo "$file has failed: kubectl describe -f $file, and kubectl logs of its pods, say why" >&2
            exit 1
        fi
        complete=$({ grep -o " Complete\b" || true; } <<<"$found" | wc -l) # no match is no error: the job still runs
    done
    echo "$file is done"
done
