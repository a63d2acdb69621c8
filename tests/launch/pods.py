"""Runs the launchers in real processes, against a fake cloud: programs named gcloud and xpk with their state in files.

In `root`: bin/ has the programs; calls, the calls of gcloud and xpk, a JSON list a line; answers/, what they print;
hosts/NUMBER/, the home directories of hosts, where ssh runs launch/on_host.sh for real; mounts/, the buckets.
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

# gcloud and xpk: answers/NAME has the output of calls with all words of NAME, answers/NAME.status their exit status.
# The longest name that fits counts.
CLOUD = """#!{python}
import json, os, pathlib, shutil, subprocess, sys

root, words = pathlib.Path({root!r}), sys.argv[1:]
with (root / "calls").open("a") as calls:
    calls.write(json.dumps([pathlib.Path(sys.argv[0]).name, *words]) + "\\n")
answers = [path for path in (root / "answers").iterdir() if not path.suffix and set(path.name.split()) <= set(words)]
path = max(answers, key=lambda path: len(path.name), default=None)
if path is not None:
    print(path.read_text(), end="")
    status = path.with_name(path.name + ".status")
    if status.exists():
        sys.exit(f"ERROR: (gcloud) status {{status.read_text()}}")
hosts = sorted((root / "hosts").iterdir())
if "scp" in words:
    source, target = words[words.index("scp") + 1 : words.index("scp") + 3]
    for host in hosts:
        shutil.copy(source, host / target.partition(":")[2])
if words[:2] == ["storage", "cp"]:
    target = root / "mounts" / words[3].removeprefix("gs://")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(words[2], target)
if words[:2] == ["storage", "rsync"]:
    shutil.copytree(root / "mounts" / words[2].removeprefix("gs://"), words[3], dirs_exist_ok=True)
if "ssh" in words:
    [command] = [word.partition("=")[2] for word in words if word.startswith("--command=")]
    ended = []
    for host in hosts:
        home = {{**os.environ, "HOME": str(host)}}
        ended.append(subprocess.run(["bash", "-c", command], cwd=host, env=home).returncode)
    sys.exit(max(ended))
"""

# A host's programs. `python3.13 -m venv` creates an environment whose python records what it installs, and acts as
# `train`: it records its arguments, and ends with the next status in ~/statuses; `wait` there waits for SIGTERM.
HOST = {
    "hostname": 'echo "host-$(basename "$HOME")"',
    "sudo": '"$@"',
    "mountpoint": '[[ -e "$2/.mounted" ]]',
    "gcsfuse": 'echo "$*" >>"$HOME/mounts"; touch "${@: -1}/.mounted"',
    "python3.13": """
if [[ "$1" == -c ]]; then exit; fi
mkdir -p "$4/bin"
cat >"$4/bin/python" <<'PYTHON'
#!/usr/bin/env bash
if [[ "$2" == pip ]]; then echo "$PWD $*" >>"$HOME/pip"; exit; fi
number=$(($(wc -l <"$HOME/ends") + 1))
printf '%s\\n' "$@" "LIBTPU_INIT_ARGS=$LIBTPU_INIT_ARGS" "JAX_PLATFORMS=$JAX_PLATFORMS" >"$HOME/train.$number"
next="$(sed -n "${number}p" "$HOME/statuses")"
echo "output of attempt $next"
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
    """A cloud in a directory, with `num_hosts` hosts; it answers with the texts in `answers`."""

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
        """Sets the queued resource that exists; none if `state` is empty."""
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
        """Returns stdout and stderr of a launcher."""
        return launch(script, *arguments, status=status, env=self.environment, cwd=self.root)

    def on_host(self, number: int, *arguments: str, status: int = 0):
        home = self.root / "hosts" / str(number)
        return launch("on_host.sh", *arguments, status=status, env={**self.environment, "HOME": str(home)}, cwd=home)

    def calls(self, *words: str) -> list[list[str]]:
        """Returns the calls of gcloud and xpk that have all of the words, in order."""
        path = self.root / "calls"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if set(words) <= set(call)]

    def home(self, number: int = 0) -> pathlib.Path:
        return self.root / "hosts" / str(number)

    def ends(self, number: int = 0) -> list[str]:
        """Returns how the attempts of a host ended."""
        return (self.home(number) / "ends").read_text().split()

    def state(self, number: int = 0) -> dict[str, str]:
        """Returns the state that the supervisor of a host wrote last."""
        path = self.home(number) / "gemma3_jax" / "run" / "state"
        return dict(line.split("=", 1) for line in path.read_text().splitlines()) if path.exists() else {}

    def wait_until_ended(self, number: int = 0) -> str:
        wait_until(
            lambda: self.state(number).get("message", "").startswith("ended") and not self.state(number)["supervisor"]
        )
        return self.state(number)["message"]

    def close(self) -> None:
        """Kills the processes of its hosts that still run."""
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
    """A directory with the tools of every Unix, git, and Python without packages; no gcloud, no xpk."""
    directory = tempfile.TemporaryDirectory()
    for name in "awk bash date dirname env git python3".split():
        (pathlib.Path(directory.name) / name).symlink_to(shutil.which(name))
    return directory


def dry_run(script: str, verb: str, *arguments: str) -> list[list[str]]:
    """Returns the commands that it would run, each as the words that a shell reads."""
    out, _ = launch(script, verb, "--dry_run", *arguments, env={"PATH": _tools().name}, cwd="/")
    return [shlex.split(line) for line in out.splitlines()]


def refused(script: str, *arguments: str) -> str:
    """Returns its one line on stderr; it must print nothing on stdout."""
    out, err = launch(script, *arguments, status=1, env={"PATH": _tools().name}, cwd="/")
    assert not out
    [line] = err.splitlines()
    return line


def expanded(command: str, variables: dict[str, str]) -> str:
    """Expands a container's command as Kubernetes does: $(NAME) is the value of a variable, if it exists; $$ is $."""

    def value(match: re.Match) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\((\w+)\)", value, command)


def wait_until(holds, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
