# Functions of the batch scripts in this folder, which source it.
#
# Arguments of a script: first these options, then settings of the program.
#   --container=IMAGE  container image: a .sif file runs under Apptainer; an enroot .sqsh file or a
#                      registry's image under pyxis. Default: no container.
#   --mounts=FOLDERS   further folders to mount in the container, separated by commas.
#   --python=PROGRAM   Python interpreter. Default: .venv/bin/python, or python in a container.
# shellcheck shell=bash

readonly SHORT_ATTEMPT_SECONDS=600  # an attempt that fails sooner made no progress
readonly MOST_SHORT_ATTEMPTS=3
readonly EXIT_DONE=0 EXIT_BAD_SETTINGS=2 EXIT_STOPPED=75  # ernie_vilg/config/exit_codes.py

# Read the options; set the log folder and the address of the ranks' rendezvous.
prepare_job() {
    cd "$SLURM_SUBMIT_DIR" || fail "$SLURM_SUBMIT_DIR is not on storage that all nodes share"
    read_options "$@"
    job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    logs=$PWD/outputs/slurm-$job
    mkdir -p "$logs"
    # A rank that stops or refuses its settings writes here (ernie_vilg/config/exit_codes.py).
    export ENDING_FILE=$logs/ending-${SLURM_RESTART_COUNT:-0}.txt
    # The code is this folder's, not an image's.
    export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
    choose_runner
    nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd ,)
    # The rendezvous is on the first node, by the address that Slurm itself uses.
    MASTER_ADDR=$(scontrol show node --oneliner "${nodes%%,*}" | grep -oP '(?<= NodeAddr=)\S+')
    # Below the kernel's ephemeral ports (32768 and up).
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
    export MASTER_ADDR MASTER_PORT
    echo "$(date --iso-8601=seconds) job $job, start ${SLURM_RESTART_COUNT:-0}: nodes $nodes," \
        "rendezvous at $MASTER_ADDR:$MASTER_PORT, logs in $logs"
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

# Choose the command with which srun starts a program.
choose_runner() {
    # Packages in the user's home folder, if the container mounts it, would hide the image's.
    [[ -z $container ]] || export PYTHONNOUSERSITE=1
    srun_options=(--export=ALL)  # this script's variables, even after sbatch --export=NONE
    if [[ -z $container ]]; then
        runner=("${interpreter:-.venv/bin/python}")
        command -v "${runner[0]}" > /dev/null ||
            fail "${runner[0]} is no program: run make environment in $PWD"
    elif [[ $container == *.sif ]]; then
        [[ -f $container ]] || fail "--container=$container: no such file on $(hostname)"
        runner=(apptainer exec --nv --bind "$PWD${mounts:+,$mounts}" --pwd "$PWD" "$container"
            "${interpreter:-python}")
    else
        if [[ $container == *.sqsh ]]; then
            [[ -f $container ]] || fail "--container=$container: no such file on $(hostname)"
            container=$(realpath "$container")  # pyxis reads a relative path as a registry's image
        fi
        local binds=$PWD:$PWD folders=() folder
        IFS=, read -ra folders <<< "$mounts"
        for folder in "${folders[@]}"; do binds+=,$folder:$folder; done
        # The image's entry takes programs by name, and some clusters run entries.
        srun_options+=(--container-image="$container" --container-mounts="$binds"
            --container-workdir="$PWD" --no-container-entrypoint)
        runner=("${interpreter:-python}")
    fi
}

# Set `part` to the share of the work of this task of an array; without an array it is empty.
choose_part() {
    part=()
    [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || return 0
    # shellcheck disable=SC2153  # MIN and MAX are Slurm's, as ID is
    ((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN + 1 == SLURM_ARRAY_TASK_COUNT)) ||
        fail "--array: give one range without gaps, such as 0-15; finished work is kept"
    # shellcheck disable=SC2034  # for the script that sources this file
    part=("num_parts=$SLURM_ARRAY_TASK_COUNT"
        "part_index=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))")
}

# Run the health check on every node; an unhealthy node is named and ends the job.
check_nodes() {
    local code=0
    # Since Slurm 22.05 srun does not inherit --cpus-per-task from sbatch.
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 "${srun_options[@]}" \
        "${runner[@]}" -m launch.cluster.check_node --folder "$logs" --nodes "$nodes" || code=$?
    [[ $code == 0 ]] ||
        fail "the check of the nodes ended with $code: fix what is named above, or submit again" \
            "with --exclude=NODE"
}

# Start one rank per task and wait; requeue the job after a failure.
run_ranks() {
    local code=0 ranks
    SECONDS=0 was_warned=''
    # A rank that fails ends the others, which would wait for it.
    srun --kill-on-bad-exit=1 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --output="$logs/rank_%t-%N.log" --open-mode=append "${srun_options[@]}" \
        "${runner[@]}" "$@" "${settings[@]}" &
    ranks=$!
    wait "$ranks" || code=$?  # unlike a foreground process, a wait lets a trap run at once
    if [[ -n $was_warned ]]; then  # the trap ended the wait, and the job still runs
        code=0
        wait "$ranks" || code=$?
    fi
    # srun reports the code of the ranks that it killed after the first one failed.
    [[ ! -s $ENDING_FILE ]] || read -r code < "$ENDING_FILE"
    echo "$(date --iso-8601=seconds) ranks ended with $code after $SECONDS s"
    case $code in
        "$EXIT_DONE") ;;
        "$EXIT_STOPPED") requeue_if_asked ;;
        "$EXIT_BAD_SETTINGS") show_end ;;
        *)
            show_end
            requeue_after_failure
            ;;
    esac
    exit "$code"
}

# Print why a rank refused its settings, or else the end of the leader's log, if a rank started.
show_end() {
    if [[ -s $ENDING_FILE ]]; then
        tail -n +2 "$ENDING_FILE" >&2
    else
        tail -n 20 "$logs"/rank_0-*.log >&2 || true
    fi
}

# For programs that do not save on a signal: Slurm signals this script instead
# (--signal=B:USR1@...), and the program later resumes from its last save.
requeue_when_warned() {
    trap 'was_warned=1; requeue "the time limit is near"' USR1
}

# The leader requeues the job, unless it has no scontrol, as in a container.
requeue_if_asked() {
    if grep -qsx requeue "$ENDING_FILE" && is_running; then
        requeue "the ranks have saved"
    fi
}

requeue_after_failure() {
    local start=${SLURM_RESTART_COUNT:-0} last=-1 short=0
    [[ ! -f $logs/short_attempts ]] || read -r last short < "$logs/short_attempts"
    ((last == start - 1)) || short=0  # the previous start did not fail
    short=$((SECONDS < SHORT_ATTEMPT_SECONDS ? short + 1 : 0))
    echo "$start $short" > "$logs/short_attempts"
    if ((short >= MOST_SHORT_ATTEMPTS)); then
        echo "$short attempts in a row ended within $SHORT_ATTEMPT_SECONDS s: not requeued" >&2
    elif is_running; then
        requeue "a failure"
    fi
}

# A cancelled job is no longer running, and must not be requeued.
is_running() {
    [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]
}

# Requeue the job, for which Slurm ends this script; return if Slurm refuses.
requeue() {
    echo "$1: requeued, to resume from the last save" >&2
    # Not SLURM_JOB_ID: for an array's last task that is the whole array.
    if scontrol requeue "$job"; then
        sleep 60
    else
        echo "not requeued: submit the job again" >&2
    fi
}

fail() {
    echo "$(basename "$0"): $*" >&2
    exit "$EXIT_BAD_SETTINGS"
}
