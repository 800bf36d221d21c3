"""The six tasks of the mini set, one for each kind."""

from pipeline.evaluation.own_tasks import own_task

MINI_TASKS = (
    own_task("MiniReviews", "Classification", has_two_classes=True),
    own_task("MiniChapters", "Clustering"),
    own_task("MiniHeadings", "PairClassification"),
    own_task("MiniReranking", "Reranking"),
    own_task("MiniRetrieval", "Retrieval"),
    own_task("MiniNearness", "STS"),
)
"""Of packages, for a quick look; grades of STS are places in a book, not judgements of people."""
