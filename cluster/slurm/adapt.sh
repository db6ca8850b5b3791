#!/bin/bash
#SBATCH --job-name=adapt
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=48G
# Steps 1 and 3: train the Class Encoder (PART=enc) or the UNet (PART=dif), which goes on from the best encoder.
source "$SLURM_SUBMIT_DIR/cluster/slurm/stage.sh"
# shellcheck disable=SC2086
if [[ ${PART:-enc} == enc ]]; then
    stage SD_adapting.py $MODEL --train_model enc ${FLAGS:-}
fi
stage SD_adapting.py $MODEL --train_model dif --enc_epoch best ${FLAGS:-}
