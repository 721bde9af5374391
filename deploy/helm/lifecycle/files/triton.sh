#!/bin/bash
# Triton of one export, on loopback only: clients speak to the gateway beside it.  Mounted into NVIDIA's containers
# by deploy/compose.yaml, by the Helm chart and by the Slurm script.
#
#   triton.sh alone                    one process: a model on one GPU, or an engine that starts its own (vLLM)
#   triton.sh spawn                    TensorRT-LLM on several GPUs of this machine: MPI starts a process for each
#   triton.sh rank                     one of srun's processes, one for each GPU of every node
#   triton.sh leader                   the first pod of a group: a process for each GPU of every pod, started over ssh
#   triton.sh worker                   another pod of the group: an sshd that only runs what the leader sends
#   triton.sh after-gateway HOST PORT  return when the gateway there has ended
#
# IDENTITY of the export; MODELS, its repository; TRITON_PORT, the first of three; leader and worker: GPUS of a pod, SSH_PORT, SSH_KEYS (folder with
# id_ed25519 and id_ed25519.pub), and what LeaderWorkerSet sets.  Not executed on GPUs here.
set -euo pipefail

mode=$1
MODELS=${MODELS:-/models}
port=${TRITON_PORT:-18000}
SSH=${SSH_FOLDER:-/tmp/ssh}
# What could change or read the server is closed to everybody: no client learns this key.
closed="shared-memory,model-repository,trace,logging:lifecycle=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
server=(
    tritonserver
    "--id=lifecycle-${IDENTITY:-unknown}"
    "--model-repository=$MODELS" --model-control-mode=none --disable-auto-complete-config
    --http-address=127.0.0.1 --http-port=$port "--http-restricted-api=$closed"
    --grpc-address=127.0.0.1 --grpc-port=$((port + 1)) "--grpc-restricted-protocol=$closed"
    --metrics-address=127.0.0.1 --metrics-port=$((port + 2))
    "--backend-config=python,shm-region-prefix-name=lifecycle_${SLURM_JOB_ID:-0}_"
    --exit-timeout-secs=30
)

# Keys where sshd and ssh accept them: theirs alone.  One pair is the group's identity in both directions.
keys() {
    mkdir -p -m 700 "$SSH"
    install -m 600 "$SSH_KEYS/id_ed25519" "$SSH_KEYS/id_ed25519.pub" "$SSH/"
}

case $mode in
alone)
    exec "${server[@]}"
    ;;
spawn)
    # As NVIDIA's launch_triton_server.py does: LLM() has MPI start its other processes.
    exec mpirun -n 1 "${server[@]}"
    ;;
rank)
    exec trtllm-llmapi-launch "${server[@]}"
    ;;
leader)
    keys
    # LeaderWorkerSet names pods NAME-GROUP and NAME-GROUP-INDEX, in one domain.
    leader=${LWS_LEADER_ADDRESS%%.*} domain=${LWS_LEADER_ADDRESS#*.}
    echo "* $(cut -d' ' -f1,2 "$SSH/id_ed25519.pub")" >"$SSH/known_hosts"
    agent="ssh -F none -p $SSH_PORT -i $SSH/id_ed25519 -o UserKnownHostsFile=$SSH/known_hosts"
    agent+=" -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=5"
    hosts=$LWS_LEADER_ADDRESS:$GPUS
    for ((index = 1; index < LWS_GROUP_SIZE; index++)); do
        worker=$leader-$index.$domain
        hosts+=,$worker:$GPUS
        until $agent "$worker" true; do
            echo "waiting for $worker" >&2
            sleep 2
        done
    done
    # Open MPI 4's name of the setting, and Open MPI 5's.
    export OMPI_MCA_plm_rsh_agent=$agent PRTE_MCA_plm_ssh_agent=$agent
    export OMPI_MCA_plm_rsh_no_tree_spawn=1 PRTE_MCA_plm_ssh_no_tree_spawn=1
    exec mpirun -n $((LWS_GROUP_SIZE * GPUS)) --host "$hosts" trtllm-llmapi-launch "${server[@]}"
    ;;
worker)
    keys
    echo "restrict $(cat "$SSH/id_ed25519.pub")" >"$SSH/authorized_keys"
    export -p >"$SSH/environment" # what is started over ssh sees the container's environment, not sshd's bare one
    cat >"$SSH/run" <<EOF
. $SSH/environment
exec /bin/sh -c "\$SSH_ORIGINAL_COMMAND"
EOF
    # StrictModes would refuse keys below /tmp, which everybody in the pod may write; they are one user.
    cat >"$SSH/config" <<EOF
Port $SSH_PORT
HostKey $SSH/id_ed25519
AuthorizedKeysFile $SSH/authorized_keys
AuthenticationMethods publickey
StrictModes no
PidFile none
UsePAM no
LogLevel ERROR
ForceCommand /bin/bash $SSH/run
EOF
    exec "$(command -v sshd)" -D -e -f "$SSH/config" # sshd wants to be called by its whole path
    ;;
after-gateway)
    while (exec 3<>"/dev/tcp/$2/$3") 2>/dev/null; do sleep 1; done
    ;;
*)
    echo "triton.sh: no such mode: $mode" >&2
    exit 2
    ;;
esac
