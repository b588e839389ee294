#!/usr/bin/env bash
# A real Slurm of one node and one core, a tiny protocol on it, and everything down again.
#
# It needs no root and writes into one temporary folder, which stays after a failure. The command is
# killed while trainings run, and given again: Slurm must complete each training exactly once.
set -euo pipefail
PATH="$PATH:/usr/sbin"
project=$(cd "$(dirname "$0")/../.." && pwd)

type munged slurmctld slurmd squeue > /dev/null || {
    echo "Slurm is missing: apt-get install slurmctld slurmd slurm-client munge" >&2
    exit 1
}
folder=$(mktemp -d -t rnnbench-slurm.XXXXXX)
chmod 755 "$folder"
daemons=()
command=""
export SLURM_CONF="$folder/slurm.conf" OMP_NUM_THREADS=1

stop() {
    code=$?
    set +e
    [ -z "$command" ] || kill -9 -- "-$command"
    scancel --user="$(id -un)"
    until_true 40 no_jobs
    kill "${daemons[@]}"
    wait
    if [ "$code" = 0 ]; then rm -rf "$folder"; else echo "== FAILED; all stays in $folder"; fi
} 2> /dev/null
trap stop EXIT
trap 'exit 130' INT TERM

until_true() { # SECONDS COMMAND...: wait until the command succeeds
    for ((second = 0; second < $1; second++)); do
        "${@:2}" > /dev/null 2>&1 && return
        sleep 1
    done
    echo "After $1 s this is still not so: ${*:2}" >&2
    return 1
}

no_jobs() { [ -z "$(squeue --noheader)" ]; }

node_is_idle() { [ "$(sinfo --noheader --format=%t)" = idle ]; }

jobs_like() { # PATTERN: the lines of the job table that match
    squeue --states=all --sort=i --noheader --format="%.6i %k %T" | grep -E "$1"
}

# The cluster. Slurm's own files lie in the folder; srun needs a wrapper, because Snakemake's
# plugin drops SLURM_CONF inside a job.
node=$(hostname -s)
mkdir "$folder"/{bin,state,spool,profile}
cat > "$folder/slurm.conf" << END
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
EnforcePartLimits=ALL
MinJobAge=3600
NodeName=$node NodeAddr=127.0.0.1 CPUs=1 RealMemory=4000
PartitionName=short Nodes=ALL MaxTime=60
END
cat > "$folder/bin/srun" << END
#!/bin/sh
SLURM_CONF=$SLURM_CONF exec $(command -v srun) "\$@"
END
chmod +x "$folder/bin/srun"
PATH="$folder/bin:$PATH"

(umask 077 && head -c 64 /dev/urandom > "$folder/munge.key")
setsid munged --foreground --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" > "$folder/munged.log" 2>&1 &
daemons+=($!)
until_true 30 test -S "$folder/munge.socket"
setsid slurmctld -D > /dev/null 2>&1 &
daemons+=($!)
setsid slurmd -D > /dev/null 2>&1 &
daemons+=($!)
until_true 60 node_is_idle

# The profile, with the three lines that a group edits (this cluster keeps no accounts).
sed -e 's/slurm_partition:.*/slurm_partition: short/' -e '/slurm_account:/d' \
    -e 's/runtime:.*/runtime: 30/' "$project/profiles/slurm/config.yaml" \
    > "$folder/profile/config.yaml"
report=(rnnbench run "$project/params/quick.yaml" --models "lstm,agru" --runs 2
    --set dataset=digits --set hidden_size=8 --set epochs=2
    --profile "$folder/profile" --output-dir "$folder/report")

echo "== The command is killed while its first training runs and the others wait"
setsid "${report[@]}" &
command=$!
until_true 600 jobs_like "rule_train.* RUNNING"
kill -9 -- "-$command"
wait "$command" || true
command=""

echo "== The same command again"
"${report[@]}"

echo "== The jobs, as Slurm lists them"
squeue --states=all --sort=i --format="%.5i %9P %42k %10T %.6M %N"
completed=$(jobs_like "rule_train.* COMPLETED" | awk '{print $2}')
[ "$(wc -l <<< "$completed")" = 4 ]
[ "$(sort -u <<< "$completed" | wc -l)" = 4 ]
[ "$(grep -c ',completed$' "$folder/report/results.csv")" = 4 ]
echo "== Passed: four trainings, each completed by Slurm once"
