"""Ray Data on one machine does without two actors, and on a cluster has them again."""

import ray.data._internal.execution.streaming_executor as executor
import ray.data._internal.stats as statistics

from pipeline.execution.clusters.local_data import NoStatistics, use_actors_of_a_cluster


def test_the_actors_are_left_out_on_one_machine_and_are_back_on_a_cluster() -> None:
    use_actors_of_a_cluster(is_wanted=True)
    before = executor.create_cluster_autoscaler, statistics.get_or_create_stats_actor
    use_actors_of_a_cluster(is_wanted=False)
    assert not {executor.create_cluster_autoscaler, statistics.get_or_create_stats_actor} & set(before)
    use_actors_of_a_cluster(is_wanted=True)
    assert (executor.create_cluster_autoscaler, statistics.get_or_create_stats_actor) == before


def test_what_statistics_are_told_comes_to_nothing() -> None:
    actor = NoStatistics()
    assert actor.update_execution_metrics.remote("a", b=1) is None
