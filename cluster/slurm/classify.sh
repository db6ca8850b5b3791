#!/bin/bash
#SBATCH --job-name=classify
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --array=0-10
# Step 6: task 0 trains on the real images, tasks 1 to 10 on synthetic sets of 1x to 10x their number.
source "$SLURM_SUBMIT_DIR/cluster/slurm/stage.sh"
# shellcheck disable=SC2086
if ((SLURM_ARRAY_TASK_ID == 0)); then
    stage classifier_training.py --synthetic False ${FLAGS:-}
fi
# shellcheck disable=SC2086
stage classifier_training.py --take "$SLURM_ARRAY_TASK_ID" ${FLAGS:-}
