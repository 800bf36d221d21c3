"""Whether a Plan still holds once its run has the claim: an expiry may have come between."""

from pipeline.errors import PlanOutdated
from pipeline.execution.planning.calibrated import is_gone
from pipeline.execution.planning.plan import Plan
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import condemned_runs


def check_current(store: Store, plan: Plan) -> None:
    """Look whether all that a Plan counts on is there; while its run holds the claim, no expiry removes any of it.

    Raises:
        PlanOutdated: something is not.
    """
    folders = {folder for blocks in plan.carried.values() for one in blocks for folder in one.folders}
    runs = {plan.run_key, *(folder.partition("-")[2] for folder in folders)}
    if runs & condemned_runs(store) or is_gone(store, plan.model):
        raise PlanOutdated(
            f"{store.uri}: an expiry has removed what this run was to go on with; run again to plan anew"
        )
