#!/usr/bin/env bash
# A real SLURM on this machine alone, as root: two nodes of two cores, node1 and node2, on loopback; no accounts, requeue allowed. A job in
# partition urgent takes the place of those in main, the default, which are told and have two minutes to save.
#   eval "$(tests/slurm/cluster.sh start DIR)"   starts munged, slurmctld and a slurmd for each node, with all they write below DIR, and
#                                                prints `export SLURM_CONF=...`
#   tests/slurm/cluster.sh stop DIR              ends those that it started
# Needs Debian's packages: apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge
set -euo pipefail
action=$1 dir=$(mkdir -p "$2" && cd "$2" && pwd) host=$(hostname -s)
case $action in
start)
    mkdir -p "$dir"/{state,log,spool-node1,spool-node2}
    cat > "$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmdTimeout=0
UnkillableStepTimeout=300
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 RealMemory=1000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
    if ! munge -n > /dev/null 2>&1; then
        mkdir -p /run/munge && chown munge: /run/munge
        runuser -u munge -- /usr/sbin/munged >&2
    fi
    export SLURM_CONF=$dir/slurm.conf
    slurmctld >&2
    for _ in $(seq 50); do if scontrol ping 2> /dev/null | grep -q "is UP"; then break; fi; sleep 0.1; done
    for node in node1 node2; do slurmd -N "$node" >&2; done
    for _ in $(seq 100); do if [ "$(sinfo -h -t idle -o %D 2> /dev/null)" = 2 ]; then break; fi; sleep 0.1; done
    sinfo >&2
    [ "$(sinfo -h -t idle -o %D)" = 2 ]
    echo "export SLURM_CONF=$dir/slurm.conf"
    ;;
stop)
    for file in "$dir"/slurmd-node1.pid "$dir"/slurmd-node2.pid "$dir"/slurmctld.pid; do
        if [ -f "$file" ]; then kill "$(cat "$file")" || true; fi
    done
    ;;
*)
    echo "usage: cluster.sh start|stop DIR" >&2
    exit 2
    ;;
esac
