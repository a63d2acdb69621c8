"""What tpu_vm.sh and gke.sh can do: their verbs, flags, checks and help texts."""

from gemma3_jax.planning import accelerators
from launch import checks, flags

JOBS = "|".join(accelerators.JOBS)
NAME = flags.Flag("name", "Name of the workload.", value="NAME", is_required=True, check=checks.name)
PROJECT = flags.Flag("project", "ID of the cloud project.", value="PROJECT", is_required=True, check=checks.project)
BUCKET = flags.Flag("bucket", "The bucket to mount.", value="gs://BUCKET", is_required=True, check=checks.bucket)
WORKDIR = flags.Flag(
    "workdir",
    "Run directory. The same one continues a run from its last checkpoint.",
    value="gs://BUCKET/DIRECTORY",
    is_required=True,
    check=checks.directory,
)
COMMIT = flags.Flag("commit", "Commit to copy; by default the files that git tracks, as they are.", value="REV")
YES = flags.Flag("yes", "Confirm. Without it, nothing is deleted.", value="")
SLICES = (
    flags.Flag("job", "A published job: the slices that fill the mesh of experiments/recipe.py:JOB.", value=JOBS),
    flags.Flag("accelerator", "Instead of --job: the accelerator type of a slice, such as v5litepod-16.", value="TYPE"),
    flags.Flag(
        "num_slices",
        "With --accelerator: the number of slices, 1 by default.",
        value="N",
        check=checks.count(1, checks.MAX_SLICES),
    ),
)
MAX_RESTARTS = flags.Flag(
    "max_restarts", "Restart train at most this often.", value="N", default="50", check=checks.count(0, 100_000)
)
LIBTPU_FLAGS = flags.Flag(
    "libtpu_flags",
    "Flags of the TPU compiler, after those of gemma3_jax/planning/compiler_flags.py.",
    value="'--FLAG ...'",
)
RESTARTED = "train is restarted after exit status 71 (an error with a traceback), 75 (stopped and saved), 124 (hung)"
GS_URLS = (
    f"train itself takes no gs:// URL: the bucket is mounted at {checks.MOUNTS}/BUCKET, and each gs://BUCKET/... among "
    "the arguments of train becomes the path there."
)

TPU_VM = flags.Launcher(
    script="tpu_vm.sh",
    summary="Trains on Cloud TPU VMs, on one slice or on several. Every verb can be repeated safely.",
    flags=(
        NAME._replace(help="Name of the queued resource; its nodes are NAME-0, NAME-1, ..."),
        PROJECT,
        flags.Flag("zone", "Zone, such as us-central1-a.", value="ZONE", is_required=True, check=checks.zone),
        flags.Flag("internal_ip", "Connect to the internal addresses of the hosts.", value=""),
        flags.Flag("iap", "Connect to the hosts through Identity-Aware Proxy.", value=""),
    ),
    derive=(checks.not_both("internal_ip", "iap"),),
    verbs={
        "create": flags.Verb(
            summary="Requests the slices as a queued resource.",
            details="First checks that the zone has the accelerator type and the runtime version, and that the bucket "
            "can hold checkpoints. A queued resource that exists already is left as it is.",
            flags=(
                *SLICES,
                BUCKET._replace(help="Bucket for data and checkpoints; it must have a hierarchical namespace."),
                flags.Flag("spot", "Request spot capacity.", value=""),
                flags.Flag("reserved", "Request reserved capacity.", value=""),
                flags.Flag(
                    "valid_until",
                    "Give up if there is no capacity within this time, such as 6h.",
                    value="DURATION",
                    check=checks.pattern("[1-9][0-9]*[smhd]", "be a duration, such as 6h"),
                ),
                flags.Flag("service_account", "Service account of the machines.", value="EMAIL"),
                flags.Flag("network", "Network of the machines.", value="NETWORK"),
                flags.Flag("subnetwork", "Subnetwork of the machines.", value="SUBNETWORK"),
                flags.Flag("internal_ips", "Give the machines no external addresses.", value=""),
                flags.Flag("runtime_version", "Machine image; by default that of the generation.", value="VERSION"),
            ),
            derive=(checks.slices, checks.not_both("spot", "reserved"), checks.runtime_version),
        ),
        "setup": flags.Verb(
            summary="Prepares all hosts: mounts the bucket with gcsfuse, copies this checkout, installs its packages.",
            flags=(BUCKET, COMMIT),
        ),
        "run": flags.Verb(
            summary="Starts train on all hosts, detached.",
            details=f"{RESTARTED} or a crash; never after 1, 70, 130 or 143.\n\n"
            "'run' fails if a run is in progress. If it started on some of the hosts only: 'stop', then 'run' again. "
            "The same holds after a host reboots, as it does not rejoin the run by itself.\n\n"
            "With --job or --accelerator, 'run' first checks that the queued resource has these slices.",
            flags=(WORKDIR, MAX_RESTARTS, LIBTPU_FLAGS, *SLICES),
            derive=(checks.slices_if_any, checks.mounts),
            trains=True,
        ),
        "status": flags.Verb(summary="Shows the state of the queued resource, and of the run on every host."),
        "logs": flags.Verb(
            summary="Copies the logs of all hosts to WORKDIR/logs, and from there to this machine.",
            flags=(WORKDIR, flags.Flag("to", "Local directory; logs/NAME if it is left out.", value="DIRECTORY")),
            derive=(checks.mounts,),
        ),
        "stop": flags.Verb(
            summary="Stops the run with SIGTERM: train saves a checkpoint and is not restarted.",
            flags=(
                flags.Flag(
                    "wait_seconds",
                    "How long to wait until the run has ended.",
                    value="SECONDS",
                    default="900",
                    check=checks.count(0, 100_000),
                ),
            ),
        ),
        "delete": flags.Verb(
            summary="Deletes the queued resource and its machines; the bucket stays. Only with --yes.", flags=(YES,)
        ),
    },
    details=f"{GS_URLS}\n\n"
    "To connect to several hosts, gcloud needs its key in an agent: ssh-add ~/.ssh/google_compute_engine.\n\n"
    "Machines that were taken away (state SUSPENDED) do not come back: delete, create, setup and run, with the same "
    "--workdir. train continues from its last checkpoint.",
    example=r"""pod='--name=gemma3-1b --project=my-project --zone=us-central1-a'
bash launch/tpu_vm.sh create $pod --job=1b --bucket=gs://my-bucket --spot
bash launch/tpu_vm.sh status $pod     # until it is ACTIVE
bash launch/tpu_vm.sh setup $pod --bucket=gs://my-bucket
bash launch/tpu_vm.sh run $pod --workdir=gs://my-bucket/runs/1b -- \
    --config=experiments/recipe.py:1b --config.data=gs://my-bucket/data \
    --config.teacher=gs://my-bucket/teacher
bash launch/tpu_vm.sh delete $pod --yes""",
)

GKE = flags.Launcher(
    script="gke.sh",
    summary="Trains on a GKE cluster of TPUs that xpk created ('xpk cluster create --tpu-type=v5litepod-256 "
    "--num-slices=2 ... --enable-workload-identity --enable-gcsfuse-csi-driver'). Every verb can be repeated safely.",
    flags=(
        flags.Flag("cluster", "Name of the cluster.", value="CLUSTER", is_required=True, check=checks.name),
        PROJECT,
        flags.Flag("zone", "Zone of the cluster, as xpk takes it.", value="ZONE", is_required=True, check=checks.zone),
    ),
    verbs={
        "attach": flags.Verb(
            summary="Attaches a bucket to the cluster as a storage, so that pods can mount it.",
            flags=(BUCKET._replace(help="The bucket to attach; it must have a hierarchical namespace."),),
            derive=(checks.mounts, checks.storage),
        ),
        "run": flags.Verb(
            summary="Creates the workload, which runs train in every pod.",
            details=f"{RESTARTED} or any signal; never after 1 or 70.\n\n"
            "A workload that exists already is left as it is. The pods run an image that has this checkout as its "
            "working directory (--image), or a Python image that this checkout is added to (--base_image).",
            flags=(
                NAME,
                WORKDIR,
                *SLICES,
                MAX_RESTARTS,
                flags.Flag(
                    "grace_seconds",
                    "How long train has to save when it is stopped.",
                    value="SECONDS",
                    default="300",
                    check=checks.count(30, 3600),
                ),
                flags.Flag(
                    "priority",
                    "Priority of the workload.",
                    value="PRIORITY",
                    default="medium",
                    check=checks.pattern(
                        "very-low|low|medium|high|very-high", "be very-low, low, medium, high or very-high"
                    ),
                ),
                LIBTPU_FLAGS,
                COMMIT,
                flags.Flag(
                    "base_image",
                    "Image to add this checkout to; python:3.13 if it is left out.",
                    value="IMAGE",
                    check=checks.IMAGE,
                ),
                flags.Flag("image", "Image that has this checkout already.", value="IMAGE", check=checks.IMAGE),
            ),
            derive=(checks.slices, checks.image, checks.mounts, checks.storage, checks.flags_in_yaml),
            trains=True,
        ),
        "list": flags.Verb(
            summary="Lists the workloads of the cluster.",
            flags=(NAME._replace(help="List only the workload of this name.", is_required=False),),
        ),
        "logs": flags.Verb(
            summary="Prints the logs of all pods of a workload in order, including pods that were replaced.",
            flags=(
                NAME,
                flags.Flag("days", "How far back.", value="DAYS", default="7", check=checks.count(1, 3650)),
            ),
        ),
        "delete": flags.Verb(
            summary="Deletes the workload; what is in the bucket stays. Only with --yes.", flags=(NAME, YES)
        ),
    },
    details=f"{GS_URLS}\n\nxpk is the one on PATH, or the program that the environment variable XPK names.",
    example=r"""pool='--cluster=my-cluster --project=my-project --zone=us-central1-a'
bash launch/gke.sh attach $pool --bucket=gs://my-bucket
bash launch/gke.sh run $pool --name=gemma3-1b --job=1b \
    --workdir=gs://my-bucket/runs/1b -- \
    --config=experiments/recipe.py:1b --config.data=gs://my-bucket/data \
    --config.teacher=gs://my-bucket/teacher
bash launch/gke.sh logs $pool --name=gemma3-1b
bash launch/gke.sh delete $pool --name=gemma3-1b --yes""",
)

LAUNCHERS = {launcher.script: launcher for launcher in (TPU_VM, GKE)}
