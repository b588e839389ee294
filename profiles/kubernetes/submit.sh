#!/bin/sh
# Called by Snakemake with MEGABYTES SCRIPT: makes a Job of the script, and prints its name.
set -eu
kubectl create --output=name --filename=- << END
apiVersion: batch/v1
kind: Job
metadata:
  generateName: rnnbench-
  labels: {app: rnnbench}
spec:
  backoffLimit: 0  # Snakemake counts the retries
  ttlSecondsAfterFinished: 86400
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: job
          image: "$RNNBENCH_IMAGE"
          command: [sh, "$2"]
          resources:
            requests: {cpu: "1", memory: "$1M"}
            limits: {memory: "$1M"}  # add nvidia.com/gpu: 1 for a GPU
          volumeMounts:
            - {name: reports, mountPath: /rnnbench/reports}
      volumes:
        - name: reports
          persistentVolumeClaim: {claimName: rnnbench-reports}
END
