"""How the tests are shared out between processes that run side by side."""

from xdist.scheduler import LoadScopeScheduling


class ByWorld(LoadScopeScheduling):
    """Gives a process all tests of one file, which share what is costly to make, and all chaos tests to one process.

    The chaos tests share one cluster across their files, and end what they find there.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "tests/chaos" if path.startswith("tests/chaos/") else path
