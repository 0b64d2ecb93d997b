# What the batch scripts of this folder have in common; each sources it.
#
# Words after a script's name: first options of ours, then settings of the program.
#   --container=IMAGE  a .sif file runs under Apptainer, anything else (an enroot .sqsh file, a
#                      registry's image) under pyxis. Without it: no container.
#   --mounts=FOLDERS   further folders that the container sees, with commas between them.
#   --python=PROGRAM   the interpreter; .venv/bin/python, in a container python.
# shellcheck shell=bash

readonly SHORT_ATTEMPT_SECONDS=600  # an attempt that fails sooner counts as one without progress
readonly MOST_SHORT_ATTEMPTS=3
readonly EXIT_DONE=0 EXIT_BAD_SETTINGS=2 EXIT_STOPPED=75  # ernie_vilg/config/exit_codes.py

# Read the options, and set where logs go and where ranks meet.
prepare_job() {
    cd "$SLURM_SUBMIT_DIR"
    read_options "$@"
    job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    logs=$PWD/outputs/slurm-$job
    mkdir -p "$logs"
    choose_runner
    nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd ,)
    # The first node's first rank is where all ranks meet: by the address that Slurm itself uses.
    MASTER_ADDR=$(scontrol show node --oneliner "${nodes%%,*}" | grep -oP '(?<= NodeAddr=)\S+')
    # Below the ports that the kernel gives to outgoing connections (32768 and up).
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
    export MASTER_ADDR MASTER_PORT
    echo "$(date --iso-8601=seconds) job $job, start ${SLURM_RESTART_COUNT:-0}: nodes $nodes," \
        "ranks meet at $MASTER_ADDR:$MASTER_PORT, logs in $logs"
}

read_options() {
    container='' mounts='' interpreter=''
    while [[ ${1:-} == --* ]]; do
        case $1 in
            --container=*) container=${1#*=} ;;
            --mounts=*) mounts=${1#*=} ;;
            --python=*) interpreter=${1#*=} ;;
            *) fail "$1: the options are --container=, --mounts= and --python=" ;;
        esac
        shift
    done
    settings=("$@")
}

# What stands between srun and a program of ours.
choose_runner() {
    srun_options=()
    if [[ -z $container ]]; then
        runner=("${interpreter:-.venv/bin/python}")
        [[ -x ${runner[0]} ]] || fail "${runner[0]} is no program: run make environment in $PWD"
    elif [[ $container == *.sif ]]; then
        [[ -f $container ]] || fail "--container=$container: no such file on $(hostname)"
        runner=(apptainer exec --nv --bind "$PWD${mounts:+,$mounts}" --pwd "$PWD" "$container"
            "${interpreter:-python}")
    else
        [[ $container != *.sqsh || -f $container ]] ||
            fail "--container=$container: no such file on $(hostname)"
        local binds=$PWD:$PWD folder
        for folder in ${mounts//,/ }; do binds+=,$folder:$folder; done
        srun_options=(--container-image="$container" --container-mounts="$binds"
            --container-workdir="$PWD")
        runner=("${interpreter:-python}")
    fi
}

# One process per node looks at it and writes down what it is; a sick one ends the job by its name.
check_nodes() {
    local code=0
    # srun does not take --cpus-per-task over from sbatch since Slurm 22.05.
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 "${srun_options[@]}" \
        "${runner[@]}" -m launch.check_node --folder "$logs" --nodes "$nodes" || code=$?
    [[ $code == 0 ]] ||
        fail "the check of the nodes ended with $code: fix what is named above, or submit again" \
            "with --exclude=NODE"
}

# Start one rank per task and wait; after an accident put the job back into the queue.
run_ranks() {
    local code=0
    SECONDS=0
    # One rank that dies takes the others with it, rather than leave them waiting.
    srun --kill-on-bad-exit=1 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --output="$logs/rank_%t-%N.log" --open-mode=append "${srun_options[@]}" \
        "${runner[@]}" "$@" "${settings[@]}" &
    wait $! || code=$?  # unlike a foreground process, it lets a trap run at once
    echo "$(date --iso-8601=seconds) ranks ended with $code after $SECONDS s"
    case $code in
        "$EXIT_DONE" | "$EXIT_STOPPED") ;;
        "$EXIT_BAD_SETTINGS") show_end ;;
        *)
            show_end
            requeue_after_accident
            ;;
    esac
    exit "$code"
}

# The leader's last words; there are none where no rank could be started.
show_end() {
    tail -n 20 "$logs"/rank_0-*.log >&2 || true
}

# For programs that do not save when they are warned: Slurm warns this script instead
# (--signal=B:USR1@...), and the program goes on later from what it saved last.
requeue_when_warned() {
    trap 'echo "the time limit is near: requeued" >&2; scontrol requeue "$SLURM_JOB_ID"; sleep 60' USR1
}

requeue_after_accident() {
    local short=0
    if ((SECONDS < SHORT_ATTEMPT_SECONDS)); then
        short=$(($(cat "$logs/short_attempts" 2>/dev/null || echo 0) + 1))
    fi
    echo "$short" > "$logs/short_attempts"
    if ((short >= MOST_SHORT_ATTEMPTS)); then
        echo "$short attempts in a row ended within $SHORT_ATTEMPT_SECONDS s: not requeued" >&2
    # A job that a person cancelled is no longer running, and must not come back.
    elif [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
        echo "requeued: the run goes on from its newest checkpoint" >&2
        scontrol requeue "$SLURM_JOB_ID"
        sleep 60  # Slurm ends this script meanwhile
    fi
}

fail() {
    echo "$(basename "$0"): $*" >&2
    exit "$EXIT_BAD_SETTINGS"
}
