#!/usr/bin/env bash
# Trains on a Cloud TPU slice: every worker of a queued resource runs the same mmdiff command. See docs/launch.md.
#
#   launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [options] [-- train --config=… --workdir=DIR]
#
# Actions:
#   create    ask for the slice and wait until it is there
#   install   copy this checkout's last commit to every worker and set it up there
#   start     run the command on every worker, in the foreground; the exit code is the command's
#   babysit   create, install and start, again after every preemption, until the command has ended for good
#   status    print the state of the slice
#   delete    give the slice back
#
# Options:
#   --type=v5litepod-16     accelerator type
#   --version=…             TPU VM image; chosen by the type when left out
#   --project=…             gcloud's own default when left out
#   --spot                  take preemptible capacity
#   --prepare='…'           shell line run on every worker after the set-up, e.g. to mount a shared directory for --workdir
#   --restarts=100          how many times babysit starts again
#   --run                   do it; without this flag the commands are printed and nothing is executed
set -euo pipefail
cd "$(dirname "$0")/.."

action="" name="" zone="" type=v5litepod-16 version="" project="" spot=0 prepare="" restarts=100 run=0 command=()
poll_seconds="${MMDIFF_POLL_SECONDS:-30}"
python="${MMDIFF_PYTHON:-.venv/bin/python}"

die() { echo "tpu_vm.sh: $1" >&2; exit 64; }

while (($#)); do
  case "$1" in
    create | install | start | babysit | status | delete) action="$1" ;;
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --prepare=*) prepare="${1#*=}" ;;
    --restarts=*) restarts="${1#*=}" ;;
    --spot) spot=1 ;;
    --run) run=1 ;;
    --help | -h) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --) shift; command=("$@"); break ;;
    *) die "unknown argument $1; --help lists the known ones" ;;
  esac
  shift
done

[[ -n $action ]] || die "no action; one of create, install, start, babysit, status, delete"
[[ -n $name ]] || die "--name is required"
[[ -n $zone ]] || die "--zone is required"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts: expected a whole number, found $restarts"
if [[ -z $version ]]; then
  case "$type" in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) die "--type=$type: no image is known for it; give --version" ;;
  esac
fi

where=(--zone="$zone")
if [[ -n $project ]]; then where+=(--project="$project"); fi

quoted() { printf '%q ' "$@" | sed 's/ $//'; }

step() {   # prints a command; runs it under --run
  echo "+ $(quoted "$@")"
  if ((run)); then "$@"; fi
}

on_workers() { step gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

check_command() {   # refuses a wrong command line here, before a slice is paid for
  ((${#command[@]})) || die "$action needs a command: -- train --config=… --workdir=DIR"
  [[ -x $(command -v "$python") ]] || die "$python is missing; run make setup, which lets the command be checked here first"
  "$python" -m launch.check "${command[@]}" || exit $?
}

state() {   # of the queued resource; NONE when there is none
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

wait_until_active() {
  if ! ((run)); then echo "# wait until the state is ACTIVE"; return 0; fi
  local now
  while true; do
    now="$(state)"
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | NONE) echo "tpu_vm.sh: $name is $now" >&2; return 1 ;;
      *) echo "$name is $now"; sleep "$poll_seconds" ;;
    esac
  done
}

create() {
  local options=(--accelerator-type="$type" --runtime-version="$version" --node-id="$name")
  if ((spot)); then options+=(--spot); fi
  step gcloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}"
  wait_until_active
}

delete() { step gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

install() {
  local archive
  archive="$(mktemp -d)/mmdiff.tar.gz"
  if [[ -n $(git status --porcelain --untracked-files=no) ]]; then echo "# uncommitted changes stay here: the last commit is copied"; fi
  step git archive --format=tar.gz --output="$archive" HEAD
  step gcloud compute tpus tpu-vm scp "$archive" "$name":mmdiff.tar.gz "${where[@]}" --worker=all
  # The images of v5e and later come with Python 3.10.
  on_workers "mkdir -p mmdiff && tar xzf mmdiff.tar.gz -C mmdiff && (command -v python3.11 >/dev/null || \
sudo apt-get install -y python3.11 python3.11-venv) && make -C mmdiff setup EXTRAS=tpu"
  if [[ -n $prepare ]]; then on_workers "$prepare"; fi
}

start() { on_workers "cd mmdiff && exec .venv/bin/python -m mmdiff $(quoted "${command[@]}")"; }

babysit() {
  if ! ((run)); then
    create; install; start
    echo "# after a preemption, or exit code 75: the same again, at most $restarts times"
    return 0
  fi
  local code tries=0
  while true; do
    case "$(state)" in
      NONE) create || true ;;
      FAILED | SUSPENDED | SUSPENDING) delete; create || true ;;
      ACTIVE) ;;
      *) wait_until_active || true ;;
    esac
    code=1
    if [[ $(state) == ACTIVE ]] && install; then
      code=0
      start || code=$?
    fi
    case "$code" in
      0) echo "$name: the command is done; the slice is still there: launch/tpu_vm.sh delete --name=$name --zone=$zone --run"; return 0 ;;
      64 | 65 | 70 | 73) echo "tpu_vm.sh: the command ended with exit code $code, which starting again does not mend" >&2; return "$code" ;;
    esac
    tries=$((tries + 1))
    if ((tries > restarts)); then echo "tpu_vm.sh: gave up after $restarts restarts; last exit code $code" >&2; return "$code"; fi
    echo "$name: exit code $code, state $(state); restart $tries of at most $restarts"
    sleep "$poll_seconds"
  done
}

case "$action" in start | babysit) check_command ;; esac
if ! ((run)); then echo "# dry run: add --run to execute"; fi
if [[ $action == status ]]; then
  step gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
else
  "$action"
fi
