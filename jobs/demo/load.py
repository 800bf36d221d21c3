"""Put the demo's model and reviews into the S3 store of the environment, where configs/demo.yaml expects them."""

import sys

import s3fs

from jobs.demo.command import upload
from jobs.demo.fetch import fetch_model, fetch_reviews

ROWS = 8000

if __name__ == "__main__":
    model, reviews = fetch_model(), fetch_reviews().slice(0, int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
    upload(s3fs.S3FileSystem(use_listings_cache=False), model, reviews)
    print(f"{reviews.num_rows:,} reviews and the model are there")
