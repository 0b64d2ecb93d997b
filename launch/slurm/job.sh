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
    cd "$SLURM_SUBMIT_DIR" || fail "$SLURM_SUBMIT_DIR is not on storage that all nodes share"
    read_options "$@"
    job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    logs=$PWD/outputs/slurm-$job
    mkdir -p "$logs"
    # A rank that is stopped or refused says so here, code and message: launch/support/environment.py.
    export ENDING_FILE=$logs/ending-${SLURM_RESTART_COUNT:-0}.txt
    # A program of launch/ finds itself beside other folders: the code is that of this one, whatever
    # an image brings.
    export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
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
    # Packages in the user's home folder, which a container may see, would hide the image's.
    [[ -z $container ]] || export PYTHONNOUSERSITE=1
    srun_options=(--export=ALL)  # of this script; srun would heed an sbatch --export=NONE
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
            container=$(realpath "$container")  # pyxis takes a relative path for a registry's image
        fi
        local binds=$PWD:$PWD folders=() folder
        IFS=, read -ra folders <<< "$mounts"
        for folder in "${folders[@]}"; do binds+=,$folder:$folder; done
        srun_options+=(--container-image="$container" --container-mounts="$binds"
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
        "${runner[@]}" -m launch.cluster.check_node --folder "$logs" --nodes "$nodes" || code=$?
    [[ $code == 0 ]] ||
        fail "the check of the nodes ended with $code: fix what is named above, or submit again" \
            "with --exclude=NODE"
}

# Start one rank per task and wait; after an accident put the job back into the queue.
run_ranks() {
    local code=0 ranks
    SECONDS=0 was_warned=''
    # One rank that dies takes the others with it, rather than leave them waiting.
    srun --kill-on-bad-exit=1 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --output="$logs/rank_%t-%N.log" --open-mode=append "${srun_options[@]}" \
        "${runner[@]}" "$@" "${settings[@]}" &
    ranks=$!
    wait "$ranks" || code=$?  # unlike a foreground process, it lets a trap run at once
    if [[ -n $was_warned ]]; then  # the trap has ended the wait, and Slurm did not end us
        code=0
        wait "$ranks" || code=$?
    fi
    # srun tells the code of the ranks that it has ended for the first one's sake.
    [[ ! -s $ENDING_FILE ]] || read -r code < "$ENDING_FILE"
    echo "$(date --iso-8601=seconds) ranks ended with $code after $SECONDS s"
    case $code in
        "$EXIT_DONE") ;;
        "$EXIT_STOPPED") requeue_if_asked ;;
        "$EXIT_BAD_SETTINGS") show_end ;;
        *)
            show_end
            requeue_after_accident
            ;;
    esac
    exit "$code"
}

# Why a rank was refused, else the leader's last words; there are none where no rank could be started.
show_end() {
    if [[ -s $ENDING_FILE ]]; then
        tail -n +2 "$ENDING_FILE" >&2
    else
        tail -n 20 "$logs"/rank_0-*.log >&2 || true
    fi
}

# For programs that do not save when they are warned: Slurm warns this script instead
# (--signal=B:USR1@...), and the program goes on later from what it saved last.
requeue_when_warned() {
    trap 'was_warned=1; requeue "the time limit is near"' USR1
}

# The leader puts the job back by itself, unless it has no scontrol, as in a container.
requeue_if_asked() {
    if grep -qsx requeue "$ENDING_FILE" && is_running; then
        requeue "the ranks have saved"
    fi
}

requeue_after_accident() {
    local start=${SLURM_RESTART_COUNT:-0} last=-1 short=0
    [[ ! -f $logs/short_attempts ]] || read -r last short < "$logs/short_attempts"
    ((last == start - 1)) || short=0  # the start before this one was not ended by an accident
    short=$((SECONDS < SHORT_ATTEMPT_SECONDS ? short + 1 : 0))
    echo "$start $short" > "$logs/short_attempts"
    if ((short >= MOST_SHORT_ATTEMPTS)); then
        echo "$short attempts in a row ended within $SHORT_ATTEMPT_SECONDS s: not requeued" >&2
    elif is_running; then
        requeue "an accident"
    fi
}

# A job that a person cancelled is no longer running, and must not come back.
is_running() {
    [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]
}

# Put the job back into the queue, in which Slurm ends this script; return where it refuses.
requeue() {
    echo "$1: back into the queue, to go on from what was saved last" >&2
    # Not by SLURM_JOB_ID: of an array's last task it is the array's, whose tasks would all come back.
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
