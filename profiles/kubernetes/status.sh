#!/bin/sh
# Called by Snakemake with a Job's name: prints running, success or failed.
counts='{.metadata.name},{.status.succeeded},{.status.failed}'
found=$(kubectl get "$1" --ignore-not-found --output="jsonpath=$counts") || {
    echo running # the cluster does not answer: ask again
    exit
}
case "$found" in
    *,1,) echo success ;;
    *,,) echo running ;;
    *) echo failed ;; # or deleted
esac
