#!/bin/bash
# The six steps as jobs (the fifth is two), one after the other; all arguments go to kubectl (--namespace=me).
# What is finished says so and ends: after an error the same command goes on where it stood.
set -euo pipefail
cd "$(dirname "$0")"

state() { # of jobs: how many pods run, and which conditions hold; nothing where none is there
    kubectl "$@" -o jsonpath='{..status.active} {..status.conditions[?(@.status=="True")].type}' --ignore-not-found
}

kubectl "$@" apply -f experiment.yaml -f postgres.yaml
for file in [1-7]-*.yaml; do
    jobs=$(sed -n 's/^  name: //p' "$file") complete=0
    for job in $jobs; do # one that has ended would stand in the way of a new one; one that runs goes on
        found=$(state "$@" get "job/$job")
        [[ $found == *[0-9]* ]] || kubectl "$@" delete --ignore-not-found --cascade=foreground "job/$job"
    done
    kubectl "$@" apply -f "$file"
    while ((complete < $(wc -w <<<"$jobs"))); do
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
