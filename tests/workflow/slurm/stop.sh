#!/usr/bin/env bash
# Ends the Slurm that `start.sh FOLDER` has started, whatever came of it, and removes its configuration.
folder=$(realpath "$1")
configuration=/etc/slurm/slurm.conf
grep -qsF "$folder/" $configuration || exit 0

timeout 10 scancel --user=root --state=RUNNING,PENDING,SUSPENDED 2>/dev/null
pids=$(cat "$folder"/{slurmd,slurmctld,munged}.pid 2>/dev/null)
kill $pids 2>/dev/null
for _ in $(seq 40); do
    kill -0 $pids 2>/dev/null || break
    sleep 0.25
done
kill -KILL $pids 2>/dev/null
rm -f $configuration /etc/slurm/gres.conf
exit 0
