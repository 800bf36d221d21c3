"""The HTTP API for jobs that the head of a Ray cluster serves, asked without importing Ray, which takes seconds.

The endpoints are those that Ray documents as its REST API for jobs, and that for packages which its client uses (2.60).
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from pipeline.errors import PipelineError

HEADERS_VARIABLE = "RAY_JOB_HEADERS"
"""JSON object of HTTP headers for a proxy before the cluster, as Ray's own command line reads it."""
CA_VARIABLE = "REQUESTS_CA_BUNDLE"
"""File or folder of certificates that are trusted for https, as the library requests reads it."""
TOKEN_FILE = Path("~/.ray/auth_token")
ANSWER_SECONDS = 60.0
UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404

Json = dict[str, Any]


class Unknown(Exception):
    """The cluster knows nothing of this name."""


class JobServer:
    """Answers questions about jobs, or raises.

    Each method raises PipelineError for an answer that says no, with its text, and requests.RequestException where none
    comes.

    Args:
        address: http(s)://host:port of the dashboard.
    """

    def __init__(self, address: str) -> None:
        self._address, self._session = address, requests.Session()
        self._session.headers.update(_headers(os.environ))

    def submit(self, job: Json) -> str:
        """Start a job; return its submission id."""
        return str(self._asked("POST", "jobs/", json=job)["submission_id"])

    def jobs(self) -> list[Json]:
        """Return what is known of each job."""
        try:
            found: list[Json] = self._asked("GET", "jobs/")
        except Unknown:
            raise PipelineError(f"{self._address} is no dashboard of a Ray cluster: it knows no /api/jobs/") from None
        return found

    def job(self, name: str) -> Json:
        """Return what is known of a job; raises Unknown."""
        found: Json = self._asked("GET", f"jobs/{quote(name)}")
        return found

    def log(self, name: str) -> str:
        """Return what a job has written so far; raises Unknown."""
        return str(self._asked("GET", f"jobs/{quote(name)}/logs")["logs"])

    def stop(self, name: str) -> bool:
        """Ask a job to end; return whether it was running; raises Unknown."""
        return bool(self._asked("POST", f"jobs/{quote(name)}/stop")["stopped"])

    def upload(self, package: Path) -> str:
        """Leave a zip file with the cluster, unless it is there; return its address there."""
        content = package.read_bytes()
        name = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:40]}.zip"
        try:
            self._asked("GET", f"packages/gcs/{name}", is_json=False)
        except Unknown:
            self._asked("PUT", f"packages/gcs/{name}", is_json=False, data=content)
        return f"gcs://{name}"

    def _asked(self, method: str, path: str, is_json: bool = True, **content: Any) -> Any:
        answer = self._session.request(method, f"{self._address}/api/{path}", timeout=ANSWER_SECONDS, **content)
        if answer.status_code in (UNAUTHORIZED, FORBIDDEN):
            raise PipelineError(
                f"the cluster at {self._address} asks for a token, and this one is missing or wrong: set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as on its nodes"
            )
        if answer.status_code == NOT_FOUND:
            raise Unknown(path)
        if not answer.ok:
            said = answer.text.strip().splitlines() or [answer.reason]
            raise PipelineError(f"the cluster at {self._address} refuses {method} {path}: {said[-1]}")
        return answer.json() if is_json else None


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of every request: those of the environment, and the token of the cluster if it has one."""
    headers: dict[str, str] = json.loads(environment.get(HEADERS_VARIABLE) or "{}")
    if "authorization" in map(str.lower, headers) or environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return headers
    token = environment.get("RAY_AUTH_TOKEN") or _read(environment.get("RAY_AUTH_TOKEN_PATH") or str(TOKEN_FILE))
    return headers | ({"Authorization": f"Bearer {token.strip()}"} if token.strip() else {})


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except OSError:
        return ""
