#!/bin/bash
#SBATCH --job-name=search
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=48G
# Steps 2 and 4: search among the epochs of PART. Every task of an array (sbatch --array=0-3 ...) is a worker of one search:
# then STORAGE must be an address that all nodes reach, postgresql+psycopg://... (PostgreSQL, which hyp_opt.py --help names).
source "$SLURM_SUBMIT_DIR/cluster/slurm/stage.sh"
if [[ ${SLURM_ARRAY_TASK_COUNT:-1} -gt 1 && -z ${STORAGE:-} ]]; then
    echo "several workers need STORAGE, a database that all nodes reach" >&2
    exit 2
fi
if [[ ${SLURM_ARRAY_TASK_COUNT:-1} -gt 1 && " ${FLAGS:-} " == *" --restart "* ]]; then
    echo "--restart is for one worker: each of several would throw away what the others have begun" >&2
    exit 2
fi
# shellcheck disable=SC2086
if [[ ${PART:-enc} == enc ]]; then
    stage hyp_opt.py $MODEL --train_model enc --save_plots ${STORAGE:+--storage "$STORAGE"} ${FLAGS:-}
fi
# shellcheck disable=SC2086
stage hyp_opt.py $MODEL --train_model dif --best --save_plots ${STORAGE:+--storage "$STORAGE"} ${FLAGS:-}
