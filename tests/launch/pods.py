"""The launchers in real processes, and a cloud for them: programs named gcloud and xpk that keep its state in files.

Of `root`: bin/ has the programs; calls, what was said to gcloud and xpk, a JSON list a line; answers/, what they print;
hosts/NUMBER/ the home directories of hosts, on which ssh runs launch/on_host.sh for real; mounts/ the buckets.
"""

import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
POD = ("--name=g3", "--project=my-project", "--zone=us-central1-a")
POOL = ("--cluster=my-cluster", "--project=my-project", "--zone=us-central1-a")

# gcloud and xpk: answers/NAME holds the answer to what has NAME's words in it; a status in answers/NAME.status. The
# longest name counts.
CLOUD = """#!{python}
import json, os, pathlib, shutil, subprocess, sys

root, said = pathlib.Path({root!r}), sys.argv[1:]
with (root / "calls").open("a") as calls:
    calls.write(json.dumps([pathlib.Path(sys.argv[0]).name, *said]) + "\\n")
found = [path for path in (root / "answers").iterdir() if not path.suffix and set(path.name.split()) <= set(said)]
path = max(found, key=lambda path: len(path.name), default=None)
if path is not None:
    print(path.read_text(), end="")
    status = path.with_name(path.name + ".status")
    if status.exists():
        sys.exit(f"ERROR: (gcloud) status {{status.read_text()}}")
hosts = sorted((root / "hosts").iterdir())
if "scp" in said:
    source, target = said[said.index("scp") + 1 : said.index("scp") + 3]
    for host in hosts:
        shutil.copy(source, host / target.partition(":")[2])
if said[:2] == ["storage", "cp"]:
    target = root / "mounts" / said[3].removeprefix("gs://")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(said[2], target)
if said[:2] == ["storage", "rsync"]:
    shutil.copytree(root / "mounts" / said[2].removeprefix("gs://"), said[3], dirs_exist_ok=True)
if "ssh" in said:
    [command] = [word.partition("=")[2] for word in said if word.startswith("--command=")]
    ended = []
    for host in hosts:
        home = {{**os.environ, "HOME": str(host)}}
        ended.append(subprocess.run(["bash", "-c", command], cwd=host, env=home).returncode)
    sys.exit(max(ended))
"""

# A host's programs. `python3.11 -m venv` makes an environment whose python notes what it installs, and plays `train`,
# which notes how it was called, and ends with the next status in ~/statuses; `wait` there waits for SIGTERM, and saves.
HOST = {
    "hostname": 'echo "host-$(basename "$HOME")"',
    "sudo": '"$@"',
    "mountpoint": '[[ -e "$2/.mounted" ]]',
    "gcsfuse": 'echo "$*" >>"$HOME/mounts"; touch "${@: -1}/.mounted"',
    "python3.11": """
if [[ "$1" == -c ]]; then exit; fi
mkdir -p "$4/bin"
cat >"$4/bin/python" <<'PYTHON'
#!/usr/bin/env bash
if [[ "$2" == pip ]]; then echo "$PWD $*" >>"$HOME/pip"; exit; fi
number=$(($(wc -l <"$HOME/ends") + 1))
printf '%s\\n' "$@" "LIBTPU_INIT_ARGS=$LIBTPU_INIT_ARGS" "JAX_PLATFORMS=$JAX_PLATFORMS" >"$HOME/train.$number"
next="$(sed -n "${number}p" "$HOME/statuses")"
echo "says something of $next"
if [[ "$next" == wait ]]; then
  trap 'sleep 0.2; echo 75 >>"$HOME/ends"; exit 75' TERM
  touch "$HOME/waits"
  while true; do sleep 0.05; done
fi
echo "$next" >>"$HOME/ends"
exit "$next"
PYTHON
chmod +x "$4/bin/python"
""",
}


class Cloud:
    """One in a directory, with `num_hosts` hosts; what is in `answers` is what the cloud says."""

    def __init__(self, root: pathlib.Path, num_hosts: int = 2):
        self.root = root
        for name in ("bin", "answers", "hosts", "mounts"):
            (root / name).mkdir()
        for number in range(num_hosts):
            home = root / "hosts" / str(number)
            home.mkdir()
            (home / "ends").touch()
            (home / "statuses").write_text("0\n")
        for name in ("gcloud", "xpk"):
            self.program(name, CLOUD.format(python=sys.executable, root=str(root)))
        for name, text in HOST.items():
            self.program(name, f"#!/usr/bin/env bash\n{text}\n")
        self.answer("storage buckets describe", "True\n")
        self.answer("tpus tpu-vm list", "".join("1\n" for _ in range(num_hosts)))

    def program(self, name: str, text: str) -> None:
        (self.root / "bin" / name).write_text(text)
        (self.root / "bin" / name).chmod(0o755)

    def answer(self, words: str, text: str, status: int = 0) -> None:
        (self.root / "answers" / words).write_text(text)
        if status:
            (self.root / "answers" / f"{words}.status").write_text(str(status))

    def there(self, state: str, slices: int = 1, name: str = "v5litepod-16") -> None:
        """A queued resource."""
        self.answer("queued-resources list", f"{state}\t{slices}\t{name}\n" if state else "")

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "GEMMA3_JAX_MOUNTS": str(self.root / "mounts"),
            "GEMMA3_JAX_RESTART_SECONDS": "0",
        }

    def run(self, script: str, *arguments: str, status: int = 0):
        """What the launcher said on stdout and on stderr."""
        return launch(script, *arguments, status=status, env=self.environment, cwd=self.root)

    def on_host(self, number: int, *arguments: str, status: int = 0):
        home = self.root / "hosts" / str(number)
        return launch("on_host.sh", *arguments, status=status, env={**self.environment, "HOME": str(home)}, cwd=home)

    def calls(self, *words: str) -> list[list[str]]:
        """What was said to gcloud and xpk, those with all of the words in them, in order."""
        path = self.root / "calls"
        said = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in said if set(words) <= set(call)]

    def home(self, number: int = 0) -> pathlib.Path:
        return self.root / "hosts" / str(number)

    def ends(self, number: int = 0) -> list[str]:
        """How the attempts of a host have ended."""
        return (self.home(number) / "ends").read_text().split()

    def state(self, number: int = 0) -> dict[str, str]:
        """What the supervisor of a host last wrote."""
        path = self.home(number) / "gemma3_jax" / "run" / "state"
        return dict(line.split("=", 1) for line in path.read_text().splitlines()) if path.exists() else {}

    def wait_until_ended(self, number: int = 0) -> str:
        wait_until(
            lambda: self.state(number).get("said", "").startswith("ended") and not self.state(number)["supervisor"]
        )
        return self.state(number)["said"]

    def close(self) -> None:
        """Ends what is still running of it."""
        for home in (self.root / "hosts").iterdir():
            for name in ("supervisor", "train"):
                if number := self.state(int(home.name)).get(name):
                    try:
                        os.kill(int(number), signal.SIGKILL)
                    except ProcessLookupError:
                        continue  # ended by itself


def launch(script: str, *arguments: str, status: int = 0, **options):
    line = ["bash", str(ROOT / "launch" / script), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout, done.stderr


@functools.cache
def _tools() -> tempfile.TemporaryDirectory:
    """A directory with what every Unix has, and git; no gcloud, no xpk."""
    directory = tempfile.TemporaryDirectory()
    for name in "awk bash cat date dirname env git tr".split():
        (pathlib.Path(directory.name) / name).symlink_to(shutil.which(name))
    return directory


def dry_run(script: str, verb: str, *arguments: str) -> list[list[str]]:
    """The commands it would run, as the words that a shell makes of each line."""
    out, _ = launch(script, verb, "--dry_run", *arguments, env={"PATH": _tools().name}, cwd="/")
    return [shlex.split(line) for line in out.splitlines()]


def refused(script: str, *arguments: str) -> str:
    """The one line that it says on stderr, having printed nothing."""
    out, err = launch(script, *arguments, status=1, env={"PATH": _tools().name}, cwd="/")
    assert not out
    [line] = err.splitlines()
    return line


def expanded(command: str, variables: dict[str, str]) -> str:
    """As Kubernetes writes a container's command: $(NAME) is a variable's value, if there is one; $$ is one sign."""

    def value(found: re.Match) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\((\w+)\)", value, command)


def wait_until(holds, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
