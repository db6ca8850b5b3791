#!/bin/bash
#SBATCH --job-name=generate
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --array=0-7
# Step 5: IMG_TOTAL images in as many shards as the array has tasks. One shard again: SHARD=auto/8 sbatch --array=3 ...
source "$SLURM_SUBMIT_DIR/cluster/slurm/stage.sh"
# shellcheck disable=SC2086
stage generate_dataset.py $MODEL --img_total "${IMG_TOTAL:?}" --best --shard "${SHARD:-auto}" ${FLAGS:-}
