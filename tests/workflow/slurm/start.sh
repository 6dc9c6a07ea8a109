#!/usr/bin/env bash
# Starts a Slurm of one node on this machine: `start.sh FOLDER`, which must be empty and is where everything is kept.
#
# Only the configuration lies elsewhere, in Slurm's default place: Slurm's own variable that names another one does not
# reach the jobs. `stop.sh FOLDER` takes all of it away again. Exit status 77: not here, and the last line says why.
set -euo pipefail

folder=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
configuration=/etc/slurm/slurm.conf
devices=/etc/slurm/gres.conf
mark="# A Slurm for the tests of resurface, of process"

not_here() {
    echo "$1"
    exit 77
}

[ "$(uname)" = Linux ] || not_here "Slurm runs on Linux only"
[ "$(id -u)" = 0 ] || not_here "only root may start Slurm's daemons"
for file in $configuration $devices; do
    if [ -e $file ] && ! head -1 $file | grep -qF "$mark"; then
        not_here "there is a Slurm here already ($file), which is left alone"
    fi
done
if [ -e $configuration ]; then
    kill -0 "$(head -1 $configuration | grep -o '[0-9]*$')" 2>/dev/null && not_here "other tests are using Slurm right now"
    "$here/stop.sh" "$(sed -n 's/^StateSaveLocation=//p' $configuration)/.."
fi

missing=$(for command in slurmctld slurmd sbatch munged; do command -v $command >/dev/null || echo $command; done)
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || not_here "Slurm is not installed and there is no apt-get to install it"
    install=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install --yes --no-install-recommends slurm-wlm munge)
    "${install[@]}" || { apt-get update && "${install[@]}"; } || not_here "apt-get cannot install slurm-wlm and munge"
fi

trap '[ $? = 0 ] || "$here/stop.sh" "$folder"' EXIT
mkdir -p "$folder/spool" "$folder/state" /etc/slurm
processors=$(nproc)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)

# No control groups: they need not be there. Memory is watched by looking at the processes once a second.
cat >$configuration <<END
$mark $PPID
ClusterName=tests
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MpiDefault=none
EnforcePartLimits=ALL
ReturnToService=2
MinJobAge=600
KillWait=5
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$processors RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
END

# A GPU to ask for, which nobody computes on.
printf '%s\nName=gpu File=/dev/null\n' "$mark $PPID" >$devices

umask 077
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 755 "$folder" # the socket is for everybody
umask 022
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
slurmctld
slurmd -N localhost

for _ in $(seq 60); do
    [ "$(sinfo --noheader --format %T 2>/dev/null)" = idle ] && exit 0
    sleep 0.5
done
tail -n 20 "$folder"/*.log
not_here "Slurm's node did not come up within 30 seconds"
