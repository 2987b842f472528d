"""A Slurm script with one task of an array for each run of a sweep."""

import shlex
from collections.abc import Sequence

SCRIPT = """\
#!/usr/bin/env bash
# {count} trainings, each a task of an array on one node:
#
#   {command} > sweep.sbatch
#   sbatch sweep.sbatch
#
# --array=0-{last}%4 lets four of them run at a time. A run that the time limit or a preemption
# stops is put into the queue again (status 75, or 143 if it had not started). At the end:
# infini-jax compare {folder}
#SBATCH --job-name=infini-sweep
#SBATCH --array=0-{last}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
# --signal: three minutes before the time is over the run saves a step and stops.
set -euo pipefail
STOPPED=75 # the status of a training that was stopped before its last step
TOO_EARLY=143 # of one that had not started, or was sent a second signal: 128 + SIGTERM

PYTHON=${{PYTHON:-.venv/bin/python}}

cd "${{CODE:-$SLURM_SUBMIT_DIR}}"
case "$SLURM_ARRAY_TASK_ID" in
{cases}
  *) echo "no run has the number $SLURM_ARRAY_TASK_ID"; exit 2 ;;
esac
status=0
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
  "$PYTHON" -u -m infini_jax.cli train "$@" || status=$?
if [ "$status" = "$STOPPED" ] || [ "$status" = "$TOO_EARLY" ]; then
  echo "stopped before the last step: in the queue again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def script(runs: Sequence[Sequence[str]], folder: str, command: str) -> str:
  """The script as text.

  Args:
    runs: the arguments of `infini-jax train` of each run.
    folder: the folder of the sweep.
    command: what wrote the script.
  """
  cases = (f"  {i}) set -- {shlex.join(arguments)} ;;" for i, arguments in enumerate(runs))
  return SCRIPT.format(
    count=len(runs),
    last=len(runs) - 1,
    cases="\n".join(cases),
    folder=shlex.quote(folder),
    command=" ".join(command.split()),
  )
