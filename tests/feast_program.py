"""What a Feast user does with a table, run by a Python that has Feast: `feast_program.py REPOSITORY ROWS VIEW…`."""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime

import orjson
import pandas
from feast import FeatureStore


def plain(vector: Iterable[float]) -> list[float]:
    """Return the numbers of a vector, or the bytes of a binary one, exactly."""
    return list(map(float, vector))


repository, rows, *views = sys.argv[1:]
store = FeatureStore(repo_path=repository)
training = pandas.DataFrame(orjson.loads(rows))
training["event_timestamp"] = pandas.to_datetime(training["event_timestamp"], utc=True)
store.materialize(datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
found = {}
for view in views:
    features = [f"{view}:embedding"]
    joined = store.get_historical_features(entity_df=training, features=features).to_df()
    online = store.get_online_features(features=features, entity_rows=[{"user": "ann"}, {"user": "bob"}]).to_dict()
    found[view] = {
        "historical": dict(zip(map(str, joined["row"]), map(plain, joined["embedding"]), strict=True)),
        "online": list(map(plain, online["embedding"])),
    }
print(orjson.dumps(found).decode())
