# Sourced by the batch files of the stages: one stage of the method as a job that SLURM may stop and start again.
#
#   DATASET, EXP     as in the scripts' flags (needed)
#   REPOSITORY       the checkout, with its environment in .venv (the folder that sbatch is called in)
#   ROOT             where everything is read and written; all nodes must see it (the checkout)
#   COMMON           flags that every script takes, such as --data_dir /data
#   MODEL            flags of the three scripts that load the backbone (--backbone sd1)
#
# Every stage goes on where it was stopped and ends with the same bytes. So a job that ends before its work is done, because
# its time is over, a signal has killed it, or a database or file system was away or its predecessor still saves (75), is
# queued again, 20 times at most; an error of the user (2) ends it.
set -uo pipefail
: "${DATASET:?}" "${EXP:?}"
REPOSITORY=${REPOSITORY:-$SLURM_SUBMIT_DIR}
MODEL=${MODEL---backbone sd1}
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}
JOB=${JOB:-$SLURM_JOB_ID}

stage() {
    local script=$1 code given=() flag
    shift
    # What was queued again goes on: --restart would throw away at each start what the one before has done.
    for flag in "$@"; do
        if [[ $flag == --restart ]] && ((${SLURM_RESTART_COUNT:-0} > 0)); then
            echo "$script: --restart is left out, since job $JOB was queued again: it goes on" >&2
        else
            given+=("$flag")
        fi
    done
    # A step of its own: SLURM's signal before the end of the time goes to it, and srun hands its exit code on.
    # Since SLURM 22.05 a step takes the cores of its job only if it is told to.
    # shellcheck disable=SC2086  # COMMON holds several flags
    srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$REPOSITORY/.venv/bin/python" "$REPOSITORY/$script" \
        --dataset "$DATASET" --exp "$EXP" --root "${ROOT:-$REPOSITORY}" ${COMMON:-} "${given[@]}"
    code=$?
    if ((code > 128 || code == 75)) && ((${SLURM_RESTART_COUNT:-0} < 20)); then # 143: stopped in time; 137 and others: killed
        echo "$script ended with code $code: job $JOB is queued again" >&2
        scontrol requeue "$JOB"
        sleep 60 # until SLURM takes this run away
    fi
    exit $code
}
