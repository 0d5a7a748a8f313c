#!/usr/bin/env bash
# Submits an mmdiff command to Slurm, one task per GPU. See docs/launch.md.
#
#   launch/slurm.sh [options] -- train --config=… --workdir=DIR
#
# Options:
#   --nodes=1  --gpus=8     nodes, and GPUs (and so tasks) per node
#   --cpus=8                CPU cores per task, for reading and decoding
#   --time=24:00:00         limit; the run saves and requeues itself five minutes before
#   --name=mmdiff           job name
#   --partition=… --account=… --qos=… --constraint=…
#   --run                   submit; without this flag the sbatch line is printed and nothing is executed
set -euo pipefail
cd "$(dirname "$0")/.."

nodes=1 gpus=8 cpus=8 time=24:00:00 name=mmdiff run=0 more=() command=()
python="${MMDIFF_PYTHON:-.venv/bin/python}"

die() { echo "slurm.sh: $1" >&2; exit 64; }

while (($#)); do
  case "$1" in
    --nodes=*) nodes="${1#*=}" ;;
    --gpus=*) gpus="${1#*=}" ;;
    --cpus=*) cpus="${1#*=}" ;;
    --time=*) time="${1#*=}" ;;
    --name=*) name="${1#*=}" ;;
    --partition=* | --account=* | --qos=* | --constraint=*) more+=("$1") ;;
    --run) run=1 ;;
    --help | -h) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --) shift; command=("$@"); break ;;
    *) die "unknown argument $1; --help lists the known ones" ;;
  esac
  shift
done

for number in "$nodes" "$gpus" "$cpus"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || die "--nodes, --gpus and --cpus are whole numbers from 1, found $number"
done
((${#command[@]})) || die "no command; write -- train --config=… --workdir=DIR"
[[ -x $(command -v "$python") ]] || die "$python is missing; run make setup first"
"$python" -m launch.check "${command[@]}" || exit $?

line=(sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --cpus-per-task="$cpus" --time="$time"
  ${more[@]+"${more[@]}"} launch/slurm.sbatch "${command[@]}")
if ! ((run)); then echo "# dry run: add --run to submit"; fi
echo "+ $(printf '%q ' "${line[@]}" | sed 's/ $//')"
if ((run)); then "${line[@]}"; fi
