#!/usr/bin/env bash
# TPU slices of a GKE cluster: a JobSet with one pod for each host.
#
#   launch/gke.sh [--dry-run] NAME IMAGE ACCELERATOR TOPOLOGY [arguments of grain_jax.train ...]
#
# IMAGE: a container image with grain_jax and its extras "tpu,gcs" installed. ACCELERATOR and
# TOPOLOGY: the labels of the node pool, such as tpu-v5-lite-podslice and 4x4. --workdir, which has to
# be given (gs://bucket/folder), and --data.data_dir must be reachable from all pods. Settings are
# checked here, which needs grain_jax on this machine too. --dry-run prints the manifest, which
# `kubectl apply -f -` takes, and applies nothing.
# A pod that is killed, preempted, hangs or loses another starts the whole set again, RETRIES times
# (default 100, as preemptions count too), and it resumes; a mistake in the command or the data (exit
# status 2) ends it. Logs, by index, in place of LOGS: kubectl logs job/NAME-slice-0 --all-pods.
# In the environment: SLICES (default 1); CHIPS_PER_HOST (default 4, of one host all its chips);
# NAMESPACE (default default); SERVICE_ACCOUNT, of the pods, with access to the bucket; BUCKET,
# of the data, mounted read-only at /data by the Cloud Storage FUSE driver; QUEUE, a LocalQueue of Kueue; PYTHON, in the
# image; LOCAL_PYTHON, MODULE, RETRIES (launch/lib/common.sh).
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
RETRIES=${RETRIES:-100} # preemptions count too
# shellcheck source=launch/lib/common.sh
. "$folder/lib/common.sh"

take_arguments "NAME IMAGE ACCELERATOR TOPOLOGY [arguments of grain_jax.train ...]" 4 "$@"
shift "$taken"
name=$1
image=$2
accelerator=$3
topology=$4
shift 4
if [[ ! "$name" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
  echo "NAME: given $name, expected up to 40 lower-case letters, digits and dashes." >&2
  exit 2
fi
if [[ ! "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]]; then
  echo "TOPOLOGY: given $topology, expected one such as 4x4 or 2x2x4." >&2
  exit 2
fi
slices=${SLICES:-1}
per_host=${CHIPS_PER_HOST:-4}
for number in "$slices" "$per_host"; do
  if [[ ! "$number" =~ ^[1-9][0-9]*$ ]]; then
    echo "SLICES and CHIPS_PER_HOST: given $slices and $per_host, expected whole numbers from 1 on." >&2
    exit 2
  fi
done
chips=$((${topology//x/*}))
if ((chips < per_host)); then per_host=$chips; fi
if ((chips % per_host)); then
  echo "CHIPS_PER_HOST: given $per_host, expected a divisor of the $chips chips of $topology." >&2
  exit 2
fi
hosts=$((chips / per_host))
need_workdir "the disks of the pods" "$@"
if [[ -n "${BUCKET:-}" && "$MODULE" == grain_jax.train ]]; then
  previous=""
  for word in "$@"; do
    if [[ "$word" =~ ^--workdir=/data(/|$) || "$previous$word" =~ ^--workdir/data(/|$) ]]; then
      echo "--workdir: given a folder of /data, which is read-only: there neither locks nor renamed" \
        "folders hold what they promise on a disk. Give its address: --workdir=gs://$BUCKET/FOLDER." >&2
      exit 2
    fi
    previous=$word
  done
fi

check_settings "where the pods are" "$@"

quoted() { # a string of JSON, which YAML reads too
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  printf '"%s"' "${text//$'\t'/\\t}"
}

# Kubernetes would replace $(NAME) in a command, and makes $$ one $.
command=""
for word in "${PYTHON:-python}" -m "$MODULE" "$@"; do
  command+="${command:+, }$(quoted "${word//\$/\$\$}")"
done

# Exit statuses that a second start would only repeat; of all others the set starts again.
manifest() {
  cat <<EOF_SET
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(quoted "$name")
  namespace: $(quoted "${NAMESPACE:-default}")
EOF_SET
  if [[ -n "${QUEUE:-}" ]]; then
    printf '  labels:\n    kueue.x-k8s.io/queue-name: %s\n' "$(quoted "$QUEUE")"
  fi
  cat <<EOF_SET
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $RETRIES
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: grain
                  operator: In
                  values: [1, 2, 3, 126, 127, 130]
          template:
EOF_SET
  if [[ -n "${BUCKET:-}" ]]; then
    printf '            metadata:\n              annotations:\n                gke-gcsfuse/volumes: "true"\n'
  fi
  cat <<EOF_SET
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 600
EOF_SET
  if [[ -n "${SERVICE_ACCOUNT:-}" ]]; then
    printf '              serviceAccountName: %s\n' "$(quoted "$SERVICE_ACCOUNT")"
  fi
  cat <<EOF_SET
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(quoted "$accelerator")
                cloud.google.com/gke-tpu-topology: $(quoted "$topology")
              containers:
                - name: grain
                  image: $(quoted "$image")
                  command: [$command]
                  env:
                    - name: JAX_PLATFORMS
                      value: tpu
                  resources:
                    requests:
                      google.com/tpu: $per_host
                    limits:
                      google.com/tpu: $per_host
                  volumeMounts:
                    - name: shared-memory
                      mountPath: /dev/shm
EOF_SET
  if [[ -n "${BUCKET:-}" ]]; then
    cat <<EOF_SET
                    - name: data
                      mountPath: /data
                      readOnly: true
EOF_SET
  fi
  # Loader processes hand batches over in /dev/shm, which has 64 MB otherwise.
  cat <<EOF_SET
              volumes:
                - name: shared-memory
                  emptyDir:
                    medium: Memory
EOF_SET
  if [[ -n "${BUCKET:-}" ]]; then
    cat <<EOF_SET
                - name: data
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    readOnly: true
                    volumeAttributes:
                      bucketName: $(quoted "$BUCKET")
                      mountOptions: implicit-dirs
EOF_SET
  fi
}

if $dry_run; then
  manifest
else
  manifest | kubectl apply -f -
fi
