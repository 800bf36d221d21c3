"""`make cluster`: S3 server, Ray head and two workers on this machine, and the demo submitted to them from outside."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs.demo.command import CONFIG, OUTPUT, upload
from jobs.demo.fetch import fetch_model, fetch_reviews
from jobs.demo.lifetime import die_with_parent
from jobs.demo.local_cluster import LocalCluster, Offer
from jobs.demo.local_s3 import local_s3
from pipeline.errors import PipelineError

WORKERS = (Offer(1, {"tier": "first"}), Offer(1, {"tier": "second"}))
STOP_SECONDS = 30.0
ENVIRONMENT_FILE, PID_FILE = "cluster.env", "cluster.pid"


def main() -> int:
    """Start everything and keep it until Ctrl-C or `stop`; return the exit code of the submitted demo."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.cluster", description=__doc__)
    parser.add_argument("action", nargs="?", choices=("start", "stop"), default="start")
    parser.add_argument("--folder", default=".demo", help="where the S3 server keeps its files (%(default)s)")
    parser.add_argument("--rows", type=int, default=4000, help="distinct reviews to embed (%(default)s)")
    parser.add_argument("--once", action="store_true", help="stop everything after the demo")
    options = parser.parse_args()
    folder = Path(options.folder).resolve()
    try:
        return _stop(folder) if options.action == "stop" else _start(folder, options.rows, options.once)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _start(folder: Path, rows: int, once: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if _running(folder):
        raise PipelineError(f"a cluster runs here already (process {_running(folder)}); make cluster-stop ends it")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is to run in the background deaf to SIGINT
        signal.signal(number, signal.default_int_handler)
    (folder / PID_FILE).write_text(str(os.getpid()))
    _say("1/4 fetching the model m3e-small and the reviews (89 + 38 MB the first time)")
    model, reviews = fetch_model(), fetch_reviews().slice(0, rows)
    _say("2/4 starting an S3 server on this machine")
    try:
        with local_s3(folder / "s3") as server:
            upload(server.filesystem(), model, reviews)
            _say("3/4 starting Ray: a head without CPUs and two workers")
            with LocalCluster(server.environment, WORKERS) as cluster:
                environment = {**server.environment, **cluster.environment}
                _write_environment(folder / ENVIRONMENT_FILE, environment)
                _say(f"    dashboard  {cluster.dashboard_url}")
                for node in cluster.workers:
                    _say(f"    worker     {node.address}, process {node.pid}")
                code = _submit_demo(environment)
                if not once:
                    _wait(folder, [node.pid for node in cluster.workers])
                return code
    except KeyboardInterrupt:
        return 0
    finally:
        _remove_traces(folder)
        _say("everything is stopped")


def _submit_demo(environment: dict[str, str]) -> int:
    _say(f"4/4 python -m jobs submit embed configs/{CONFIG.name}\n")
    inside = os.environ | environment
    jobs = [sys.executable, "-m", "jobs"]
    code = 0
    for words in (["submit", "embed", str(CONFIG)], ["status", OUTPUT], ["submit", "--list"]):
        if words[1] != "embed":
            _say(f"\n$ python -m jobs {' '.join(words)}")
        ended = subprocess.run([*jobs, *words], env=inside, check=False, preexec_fn=die_with_parent())
        code = code or ended.returncode
    return code


def _wait(folder: Path, workers: list[int]) -> None:
    environment = folder / ENVIRONMENT_FILE
    _say(f"""
The cluster goes on until Ctrl-C here or `make cluster-stop` elsewhere. In another terminal, in this folder:
  source {Path(sys.prefix) / "bin" / "activate"}
  source {environment}
  python -m jobs submit embed configs/demo.yaml recipe.dimensions=256 output.uri=s3://demo/second/ --no-wait
  python -m jobs submit --list                     # then --logs NAME, --stop NAME, and the first line again
  kill -9 {workers[0]}                                  # a worker; the run goes on without it
""")
    while True:
        time.sleep(3600)


def _write_environment(path: Path, environment: dict[str, str]) -> None:
    """Write what leads a shell to this cluster, for the eyes of its owner alone."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")


def _remove_traces(folder: Path) -> None:
    for name in (ENVIRONMENT_FILE, PID_FILE):
        (folder / name).unlink(missing_ok=True)


def _running(folder: Path) -> int | None:
    """Return the process that keeps a cluster over this folder."""
    try:
        pid = int((folder / PID_FILE).read_text())
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"jobs.demo.cluster" in title and pid != os.getpid() else None


def _stop(folder: Path) -> int:
    pid = _running(folder)
    if pid is None:
        _say("no cluster runs here")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _running(folder):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)  # what it has started ends with it
        time.sleep(0.2)
    _remove_traces(folder)
    _say("everything is stopped")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
